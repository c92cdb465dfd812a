#!/bin/sh
# PID 1 of the guest. E2E_DIR, from the kernel's command line, is the run directory on the host:
# command.sh comes from there, and the exit code goes there.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
modules=/usr/lib/uml/modules

# The host's file system is mounted read-only; all writes go to memory, in an overlay above it.
mount -t proc proc /proc
insmod "$modules/$(uname -r)/kernel/fs/overlayfs/overlay.ko"
mount -t tmpfs -o mode=755 writes /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root || exit 1
cd /mnt/root && mkdir -p .host dev proc sys run lib/modules && pivot_root . .host
umount -l /.host && rmdir /.host

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
mount -t cgroup2 cgroup /sys/fs/cgroup 2>/dev/null
mount -t hostfs -o "$modules" none /lib/modules
# Real tmpfs for what wants one: sockets, locks, data directories.
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock /run/netns /run/e2e
mount -t hostfs -o "$E2E_DIR" none /run/e2e

hostname guest
ip link set lo up
ulimit -n 65536
for tty in 1 2; do stty -F /dev/tty$tty raw -echo; done

setsid -w sh /run/e2e/command.sh </dev/null >/dev/tty1 2>/dev/tty2
code=$?
# Renamed into place, so that a half-written code is never read; synced, so that nothing written
# to a disk by a command that ended is lost.
echo $code >/run/e2e/code.tmp && sync && mv /run/e2e/code.tmp /run/e2e/code
echo o >/proc/sysrq-trigger
sleep 5
