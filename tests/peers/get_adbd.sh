#!/bin/sh
# Puts Debian 13's adbd and all that it needs into a folder: get_adbd.sh FOLDER. Debian 12 has none, so that it is not
# installed: a private apt reads the list of Debian 13, and the packages are only unpacked. Kept for the next time.
set -eu
folder=$1
[ -e "$folder/complete" ] && exit 0
apt=$folder/apt
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
APT::Architecture "amd64";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::Languages "none";
END
export APT_CONFIG="$apt/apt.conf"
apt-get -q update
apt-get -q -y --download-only install adbd
for package in "$apt"/cache/archives/*.deb; do
    dpkg-deb -x "$package" "$folder/root"
done
rm -rf "$apt"
touch "$folder/complete"
