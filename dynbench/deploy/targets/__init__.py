"""Where a job is measured: this machine, a board by ssh, an Android device by adb, any device with a browser."""
