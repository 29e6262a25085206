# Sourced by the other scripts: who runs what. Root installs packages and runs the collector; whoever owns the checkout
# builds, so that `sudo make run` leaves no files of root in a user's checkout.

set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# The user who builds.
if [ "$(id -u)" = 0 ] && [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ]; then
  BUILDER=$SUDO_USER
else
  BUILDER=$(id -un)
fi
BUILDER_HOME=$(getent passwd "$BUILDER" | cut -d: -f6)
# rustup's place: sudo resets PATH to the system's.
for dir in "$BUILDER_HOME/.cargo/bin" "${CARGO_HOME:-$BUILDER_HOME/.cargo}/bin"; do
  case ":$PATH:" in *":$dir:"*) ;; *) if [ -d "$dir" ]; then PATH="$PATH:$dir"; fi ;; esac
done
export PATH

as_builder() {
  if [ "$(id -un)" = "$BUILDER" ]; then
    "$@"
  else
    runuser -u "$BUILDER" -- env HOME="$BUILDER_HOME" PATH="$PATH" "$@"
  fi
}

can_root() { [ "$(id -u)" = 0 ] || command -v sudo >/dev/null 2>&1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null 2>&1; then
    sudo "$@"
  else
    die "this needs root and there is no sudo: $*"
  fi
}
