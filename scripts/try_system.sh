#!/bin/sh
# Run `make demo` and `make test` of this checkout's last commit in a fresh Debian: trixie (Python 3.13), forky or sid
# (3.14), bookworm (3.11). Needs root, debootstrap and 15 GB. Not part of CI.
#
#     scripts/try_system.sh trixie            # in /var/tmp/safmn-systems/trixie; a second run reuses it
#     scripts/try_system.sh forky -- make test
#
# DEBIAN_MIRROR names another mirror, SYSTEMS another folder. The systems use this machine's pip configuration and share
# a cache of downloads. To remove one: rm -r /var/tmp/safmn-systems/trixie (nothing stays mounted after a run).
set -eu

suite=${1:?usage: scripts/try_system.sh SUITE [-- COMMAND ...]}
shift
[ "${1-}" = -- ] && shift
[ $# -gt 0 ] || set -- sh -c "make demo && make test"

[ "$(id -u)" = 0 ] || { echo "try_system: this needs root" >&2; exit 2; }
command -v debootstrap > /dev/null || { echo "try_system: debootstrap is missing: apt install debootstrap" >&2; exit 2; }

checkout=$(cd "$(dirname "$0")/.." && pwd)
systems=${SYSTEMS:-/var/tmp/safmn-systems}
system=$systems/$suite
clone=$system/srv/safmn

if [ ! -e "$system/.complete" ]; then
    # a debootstrap that does not know a newer suite by name makes it as it makes sid
    scripts=/usr/share/debootstrap/scripts
    script=$scripts/$suite
    [ -e "$script" ] || script=$scripts/sid
    rm -rf --one-file-system "$system" # what an interrupted run left
    mkdir -p "$systems"
    unshare --mount debootstrap --variant=minbase --include=python3,python3-venv,make,git,g++,ca-certificates \
        "$suite" "$system" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" "$script"
    # what opencv-python needs, by apt, because the second package has another name since trixie
    cp -L /etc/resolv.conf "$system/etc/resolv.conf"
    DEBIAN_FRONTEND=noninteractive chroot "$system" apt-get install --yes --quiet libgl1 libglib2.0-0
    touch "$system/.complete"
fi

if [ -d "$clone" ]; then
    git -C "$clone" fetch --quiet "$checkout" HEAD
    git -C "$clone" reset --quiet --hard FETCH_HEAD
else
    git clone --quiet --no-hardlinks "$checkout" "$clone"
fi
git -C "$checkout" diff --quiet HEAD || echo "try_system: changes that are not committed are left out" >&2

cp -L /etc/resolv.conf /etc/hosts "$system/etc" # torchrun looks up this machine by its name
mkdir -p "$systems/pip-cache" "$system/pip-cache"
# pip works there as it is configured here: the same files and variables, and the files and folders that they name.
places=$systems/$suite.places variables=$systems/$suite.variables
for folder in etc etc/xdg/pip "${HOME#/}/.config/pip" "${HOME#/}/.pip"; do
    [ -e "/$folder/pip.conf" ] || continue
    there=$system/$(echo "/$folder" | sed "s#^$HOME#/srv#")
    mkdir -p "$there"
    cp -L "/$folder/pip.conf" "$there/pip.conf"
done
{ python3 -m pip config list || true; } | grep -o "/[^ ':]*" | sed 's#^//*#/#; s#/simple/*$##' | sort -u > "$places" || true
env | grep -E '^(PIP_|SSL_CERT_|REQUESTS_CA|CURL_CA|https?_proxy|HTTPS?_PROXY|no_proxy|NO_PROXY)' > "$variables" || true

# Mounts are made in a namespace of their own, so they end with this command, however it ends.
exec unshare --mount --pid --fork --kill-child sh -eu -c '
    system=$1 cache=$2 places=$3 variables=$4
    shift 4
    mount -t proc proc "$system/proc"
    mount --rbind /dev "$system/dev"
    mount --bind "$cache" "$system/pip-cache"
    while read -r place; do
        [ -e "$place" ] || continue
        if [ -d "$place" ]; then mkdir -p "$system$place"; else mkdir -p "$(dirname "$system$place")"; touch "$system$place"; fi
        mount --bind -o ro "$place" "$system$place"
    done < "$places"
    while IFS= read -r line; do set -- "$line" "$@"; done < "$variables"
    # not by exec: this shell is the first process there and collects those that lose their parent
    env -i HOME=/srv LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin PIP_CACHE_DIR=/pip-cache \
        chroot "$system" env -C /srv/safmn "$@"
' try_system "$system" "$systems/pip-cache" "$places" "$variables" "$@"
