#!/bin/sh
# Unpacks packages of Debian 13 into FOLDER/root, without installing them: debian13.sh FOLDER ARCHITECTURE PACKAGE...
#
# With what they need, or only themselves with --alone before FOLDER. Debian 12 lacks these packages or has them too old:
# a private apt reads the list of Debian 13. Kept for the next time.
set -eu
alone=
[ "$1" != --alone ] || { alone=1; shift; }
folder=$1 architecture=$2
shift 2
[ -e "$folder/complete" ] && exit 0
apt=$folder/apt
rm -rf "$apt" "$folder/root"
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/parts" "$folder/root"
chmod 755 "$folder" "$apt" "$apt/cache" "$apt/cache/archives"
: >"$apt/status"
mirror=$(grep -rhE '^(deb |URIs:)' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null |
    grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1)
[ -n "$mirror" ] || { echo "this machine has no mirror of Debian in its sources of apt" >&2; exit 1; }
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$apt/sources.list"
cat >"$apt/apt.conf" <<END
Dir::State "$apt";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "$apt/parts";
APT::Architecture "$architecture";
APT::Architectures { "$architecture"; };
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::Languages "none";
END
export APT_CONFIG="$apt/apt.conf"
apt-get -q update
if [ -n "$alone" ]; then
    (cd "$apt/cache/archives" && apt-get -q download "$@")
else
    apt-get -q -y --download-only install "$@"
fi
for package in "$apt"/cache/archives/*.deb; do
    dpkg-deb -x "$package" "$folder/root"
done
[ -e "$folder/root/lib" ] || ln -s usr/lib "$folder/root/lib"
rm -rf "$apt"
touch "$folder/complete"
