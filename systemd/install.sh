#!/bin/sh
# Sets edge-app up as a service on Raspberry Pi OS (or Debian) 12 Bookworm and 13 Trixie.
#
#   sudo systemd/install.sh [--dry-run]              install, or bring up to date
#   sudo systemd/install.sh --uninstall [--purge]    remove; --purge: configuration and state too
#
# --dry-run prints each command and runs none. It may be run any number of times: configuration is
# never overwritten, of the state only models/base is touched. PREFIX is where the program goes.
set -eu

PREFIX=${PREFIX:-/opt/edge-app}
# The units name these two.
CONFIG=/etc/edge-app
STATE=/var/lib/edge-app
UNITS=/etc/systemd/system
LINK=/usr/local/bin/edge-app
# apt's Python: the one that apt's picamera2, OpenCV and lgpio are built for.
PYTHON=/usr/bin/python3
OS_RELEASE=${OS_RELEASE:-/etc/os-release}
SYSTEMD_RUNS=${SYSTEMD_RUNS:-/run/systemd/system}
SOURCE=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)

# Without these nothing works.
NEEDED="python3 python3-venv python3-numpy python3-opencv procps"
# These drive a Pi's own camera and pins; Debian lacks some, Raspberry Pi OS has them.
WANTED="python3-picamera2 python3-gpiozero python3-lgpio"

dry_run=no action=install purge=no

usage() {
    sed -n '2,8s/^# \{0,1\}//p' "$0"
}

say() {
    printf '%s\n' "$*"
}

# Stops; a dry run only says that it would.
refuse() {
    if [ "$dry_run" = yes ]; then
        say "# would stop here: $*"
    else
        printf 'install.sh: %s\n' "$*" >&2
        exit 1
    fi
}

# Runs a command; a dry run prints it.
run() {
    if [ "$dry_run" = yes ]; then
        say "$*"
    else
        "$@"
    fi
}

check_machine() {
    # Read in a process of its own: it sets many names.
    # shellcheck source=/dev/null
    system=$(. "$OS_RELEASE" 2>/dev/null && printf '%s %s' "${ID:-?}" "${VERSION_ID:-?}") ||
        system="no $OS_RELEASE"
    case "$system" in
        "debian 12" | "debian 13" | "raspbian 12" | "raspbian 13") ;;
        *) refuse "this is $system; wanted Raspberry Pi OS or Debian, 12 (Bookworm) or 13 (Trixie)" ;;
    esac
    if [ "$(getconf LONG_BIT)" != 64 ]; then
        refuse "a 32-bit system; no TFLite runtime has a wheel for it: install the 64-bit one"
    fi
    [ "$(id -u)" = 0 ] || refuse "needs root: sudo $0"
    [ -d "$SYSTEMD_RUNS" ] || refuse "systemd does not run here ($SYSTEMD_RUNS is not there)"
}

# Packages from apt: what is needed, and of what is wanted that which there is.
install_packages() {
    run apt-get update -q
    packages=$NEEDED
    for package in $WANTED; do
        if apt-cache show "$package" >/dev/null 2>&1; then
            packages="$packages $package"
        else
            say "# apt has no $package here: without it $(loss "$package")"
        fi
    done
    # shellcheck disable=SC2086  # a list of words
    run env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages
}

loss() {
    case "$1" in
        python3-picamera2) say "there is no source picamera (USB and network cameras work)" ;;
        *) say "no pin is read or driven" ;;
    esac
}

# The program in an environment of its own that sees apt's packages.
install_program() {
    # Built from a copy: building would leave root's files in the checkout.
    for part in edge_app pyproject.toml README.md LICENSE NOTICE; do
        run cp -R "$SOURCE/$part" "$work/"
    done
    if [ ! -x "$PREFIX/bin/pip" ] || [ "$("$PREFIX/bin/python" -c "$PYTHON_VERSION")" != \
        "$("$PYTHON" -c "$PYTHON_VERSION")" ]; then
        # Also after an upgrade of the system to another Python.
        run "$PYTHON" -m venv --clear --system-site-packages "$PREFIX"
    fi
    # picamera2 and OpenCV of apt are built against apt's numpy: pip must not put another over it.
    numpy='import numpy; print("numpy==" + numpy.__version__)'
    if [ "$dry_run" = yes ]; then
        say "$PYTHON -c '$numpy' > $work/constraints.txt"
    else
        "$PYTHON" -c "$numpy" >"$work/constraints.txt"
    fi
    run "$PREFIX/bin/pip" install --quiet --disable-pip-version-check --no-input \
        --constraint "$work/constraints.txt" "${work}[service]"
    [ "$dry_run" = yes ] || check_program
    run install -d -m 755 "$PREFIX/doc"
    run install -m 644 "$SOURCE/docs/service.md" "$SOURCE/edge_app/default.toml" "$PREFIX/doc/"
    run ln -sfn "$PREFIX/bin/edge-app" "$LINK"
}

PYTHON_VERSION='import sys; print(sys.version_info[:2])'

check_program() {
    own=$("$PREFIX/bin/pip" list --local --format=freeze --disable-pip-version-check |
        grep -iE '^(numpy|opencv-)' || true)
    if [ -n "$own" ]; then
        refuse "$PREFIX holds $(echo "$own" | tr '\n' ' ')over apt's: rm -r $PREFIX, run this again"
    fi
    "$PREFIX/bin/edge-app" --version
}

install_user_and_folders() {
    run install -D -m 644 "$SOURCE/systemd/sysusers.d/edge-app.conf" /etc/sysusers.d/edge-app.conf
    run install -D -m 644 "$SOURCE/systemd/tmpfiles.d/edge-app.conf" /etc/tmpfiles.d/edge-app.conf
    run systemd-sysusers /etc/sysusers.d/edge-app.conf
    run systemd-tmpfiles --create /etc/tmpfiles.d/edge-app.conf
}

install_configuration() {
    if [ -e "$CONFIG/config.toml" ]; then
        say "# $CONFIG/config.toml is there and stays as it is"
        return
    fi
    if [ "$dry_run" = yes ]; then
        say "write $CONFIG/config.toml (root:edge-app, 640)"
        return
    fi
    cat >"$CONFIG/config.toml" <<CONFIG_END
# Settings of the service. Every one with unit, range and default: $PREFIX/doc/default.toml
# After a change: sudo systemctl restart edge-app

[service]
# picamera, camera:0, rtsp://..., or synthetic to try things out.
source = "picamera"
CONFIG_END
    chown root:edge-app "$CONFIG/config.toml"
    chmod 640 "$CONFIG/config.toml"
}

# The bundle that any part is learnt with. The folder belongs to the service's user, and all is done
# as that user: root follows no link that the service may have put there.
install_base() {
    run cp -R "$SOURCE/models/base" "$work/"
    run chmod -R u=rwX,go=rX "$work"
    run runuser -u edge-app -- sh -euc "
        cmp -s '$work/base/manifest.json' '$STATE/models/base/manifest.json' && exit 0
        cd '$STATE/models'
        rm -rf .base.new .base.old
        cp -R '$work/base' .base.new
        if [ -e base ]; then mv base .base.old; fi
        mv .base.new base
        rm -rf .base.old"
}

install_units() {
    for unit in edge-app.service edge-app@.service; do
        run install -m 644 "$SOURCE/systemd/$unit" "$UNITS/$unit"
    done
    if [ "$PREFIX" != /opt/edge-app ]; then
        run sed -i "s#/opt/edge-app/#$PREFIX/#" "$UNITS/edge-app.service" "$UNITS/edge-app@.service"
    fi
    run systemctl daemon-reload
    run systemctl enable edge-app.service
    # Instances that run go on with the new program.
    run systemctl try-restart 'edge-app@*.service'
    # A link that leads nowhere counts: the service says so better than silence does.
    if [ -L "$STATE/models/current" ]; then
        run systemctl restart edge-app.service ||
            refuse "installed, but the service does not start: journalctl -u edge-app -n 30"
    fi
}

install_all() {
    check_machine
    for part in edge_app/default.toml models/base/manifest.json docs/service.md; do
        [ -e "$SOURCE/$part" ] || refuse "$SOURCE has no $part: run this from a checkout"
    done
    work=/tmp/edge-app.XXXXXX
    if [ "$dry_run" = no ]; then
        work=$(mktemp -d "$work")
        # shellcheck disable=SC2064  # this folder, whatever the name stands for later
        trap "rm -rf '$work'" EXIT
        chmod 755 "$work"
    fi
    install_packages
    install_program
    install_user_and_folders
    install_configuration
    install_base
    install_units
    if [ ! -L "$STATE/models/current" ]; then
        say "Installed. It has no bundle yet. Set the camera in $CONFIG/config.toml, then:"
        say "  sudo -u edge-app edge-app enroll SOURCE --part NAME --out $STATE/models/NAME --activate"
        say "  sudo systemctl start edge-app && systemctl status edge-app"
    else
        say "Installed: systemctl status edge-app"
    fi
}

uninstall_all() {
    check_machine
    # A unit that is not there any more is no error: this may be run twice.
    run systemctl disable --now edge-app.service || true
    # Enabled instances are links; those that run are known to systemd.
    for wanted in "$UNITS"/multi-user.target.wants/edge-app@*.service; do
        [ -e "$wanted" ] || [ -L "$wanted" ] || continue
        run systemctl disable --now "$(basename "$wanted")" || true
    done
    run systemctl stop 'edge-app@*.service' || true
    run rm -f "$UNITS/edge-app.service" "$UNITS/edge-app@.service" \
        /etc/sysusers.d/edge-app.conf /etc/tmpfiles.d/edge-app.conf "$LINK"
    run systemctl daemon-reload
    case "$PREFIX" in
        /*/*) run rm -rf "$PREFIX" ;;
        *) refuse "PREFIX=$PREFIX is not removed: wanted a folder of its own, as /opt/edge-app" ;;
    esac
    if [ "$purge" = yes ]; then
        run rm -rf "$STATE" "$CONFIG" "$UNITS/edge-app.service.d" "$UNITS/edge-app@.service.d"
        if getent passwd edge-app >/dev/null; then
            run userdel edge-app
        fi
        say "Removed, with configuration and state."
    else
        say "Removed. Kept: $CONFIG, $STATE, the user edge-app (--purge removes them too)."
    fi
}

for argument in "$@"; do
    case "$argument" in
        --dry-run) dry_run=yes ;;
        --uninstall) action=uninstall ;;
        --purge) purge=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        *)
            printf 'install.sh: unknown option %s\n' "$argument" >&2
            usage >&2
            exit 2
            ;;
    esac
done
if [ "$purge" = yes ] && [ "$action" = install ]; then
    printf 'install.sh: --purge goes with --uninstall\n' >&2
    exit 2
fi

"${action}_all"
