#!/bin/sh
# Installs what the laboratory needs on Debian 12: engines, bootstrap tool, network and file system tools.
# Idempotent; when all is there it only asks dpkg (milliseconds) and touches nothing. Nothing that it
# installs is started: the laboratory runs its own engines in its own namespaces.
set -eu

fail() { echo "lab/deps.sh: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "must be run as root (the laboratory makes namespaces, mounts and control groups); nothing was changed; run: sudo make deps"
[ -r /etc/os-release ] || fail "no /etc/os-release: the laboratory is made for Debian 12; nothing was changed"
. /etc/os-release
case "${ID:-}:${VERSION_ID:-}" in
debian:12) ;;
debian:*) echo "lab/deps.sh: Debian ${VERSION_ID:-unknown}: the laboratory is tried on Debian 12; going on" >&2 ;;
*) fail "this is ${PRETTY_NAME:-an unknown system}; the laboratory needs Debian 12; nothing was changed" ;;
esac

PACKAGES="docker.io docker-compose mmdebstrap iproute2 iptables attr acl libcap2-bin util-linux procps ca-certificates curl xz-utils gcc libc6-dev make git docker-registry xfsprogs btrfs-progs"
missing=
for p in $PACKAGES; do
  s=$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null) || s=
  [ "$s" = installed ] || missing="$missing $p"
done
[ -n "$missing" ] || exit 0

# Services of these packages stay down: a policy of ours stands in while apt runs, unless the machine has one.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod 755 "$policy"
  trap 'rm -f "$policy"' EXIT
  trap 'exit 130' INT TERM
fi
export DEBIAN_FRONTEND=noninteractive
echo "lab/deps.sh: installing:$missing" >&2
# shellcheck disable=SC2086 # a list of package names
install() { apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 $missing >&2; }
apt-get update -q -o DPkg::Lock::Timeout=300 >&2 || echo "lab/deps.sh: apt-get update failed; trying with the lists that are there" >&2
install || fail "apt-get could not install:$missing; what was installed before the error stays; read its message above, then run make deps again"
