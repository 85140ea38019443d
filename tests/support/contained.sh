#!/bin/bash
# contained.sh WHERE KIND COMMAND...: the command in a container, made as container software makes them: a root of its
# own in a mount namespace, in which only the folders of WHERE (one a line) and the C library are found. No command of
# SLURM's, no munge, no configuration of SLURM's, no /etc. KIND: `mounts` shares the machine's processes, as Apptainer
# does by default; `processes` has its own, and another host name, as docker and podman do.
where=$1 kind=$2
shift 2
export CONTAINED_FOLDERS
CONTAINED_FOLDERS=$(cat "$where")
namespaces=(--mount --propagation private)
if [[ $kind == processes ]]; then namespaces+=(--pid --fork --kill-child --mount-proc --uts); fi
# shellcheck disable=SC2016
exec unshare "${namespaces[@]}" bash -c '
  set -e
  root=$(mktemp -d)
  mount -t tmpfs none "$root"
  mkdir -p "$root"/{proc,sys,dev,tmp,etc,usr/bin}
  for folder in /usr/lib /usr/lib64 /usr/local/lib $CONTAINED_FOLDERS; do
    if [[ -d $folder ]]; then mkdir -p "$root$folder"; mount --rbind "$folder" "$root$folder"; fi
  done
  for folder in /proc /sys /dev; do mount --rbind "$folder" "$root$folder"; done
  cp -L /bin/sh /usr/bin/env "$root/usr/bin/"
  for name in bin lib lib64; do ln -s "usr/$name" "$root/$name"; done
  if [[ $1 == processes ]]; then hostname contained; fi
  here=$PWD
  shift
  PATH=/usr/bin exec /usr/sbin/chroot "$root" /usr/bin/env -C "$here" "$@"
' contained "$kind" "$@"
