#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Become systemd as process 1 that knows no units but those of one folder: boot.sh UNITS ETC VENV
# To be run in mount, process, network, IPC, UTS and control group namespaces of its own. What is not mounted here anew is
# read-only, /proc/sys included, so nothing of this machine changes but its cache of compiled programs.
set -eu
units=$1 etc=$2 venv=$3
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /mnt
mkdir /mnt/etc
cp -a "$units" /mnt/units
cp -a /etc/passwd /etc/group /etc/nsswitch.conf /etc/ld.so.cache "$etc/." /mnt/etc
mount -t tmpfs tmpfs /run
cp -a /mnt/. /run
for place in /mnt /tmp /var/tmp /var/log /var/lib /opt /home /root; do
	mount -t tmpfs tmpfs "$place"
done
mount --bind /run/etc /etc
ln -s "$venv" /opt/lbctl
[ -d /var/cache/lbctl ] || mkdir -m 0700 /var/cache/lbctl
for place in /var/cache/lbctl /proc/sys; do
	mount --bind "$place" "$place"
done
mount -o remount,bind,ro /proc/sys
mount -o remount,bind,ro /
umount --lazy --recursive /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
ip link add uplink type veth peer name peer
ip address add 192.0.2.1/24 dev uplink
ip link set uplink up
ip link set peer up
exec env -i container=lbctl-test PATH=/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_UNIT_PATH=/run/units \
	/lib/systemd/systemd --system --unit=lbctl.service --log-target=console --show-status=0
