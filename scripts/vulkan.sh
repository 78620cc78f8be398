#!/bin/sh
# Sees to what foveate needs besides its source: cargo, a C linker, and a Vulkan loader and driver.
#
#   scripts/vulkan.sh           what the program needs
#   scripts/vulkan.sh --tests   the same, and what tests use where it is there: EGL, through which
#                               they reach Mesa's OpenGL device, and spirv-val
#
# What is there is left alone. What is missing is installed by apt-get where that needs no question
# (as root, or with a sudo that asks for no password). Elsewhere the script prints the command for
# this system and exits with 1. With FOVEATE_INSTALL=no it never installs.

set -eu

for_tests=no
case ${1:-} in
    "") ;;
    --tests) for_tests=yes ;;
    *)
        printf 'usage: %s [--tests]\n' "$0" >&2
        exit 2
        ;;
esac

say() {
    printf '%s\n' "$*"
}

stop() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Is there a shared library of this name or path?
library() {
    case $1 in
        */*)
            [ -e "$1" ]
            return
            ;;
    esac
    # Users' PATHs often lack /sbin.
    if PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | grep -F "$1 " >/dev/null; then
        return 0
    fi
    for folder in /lib /lib64 /usr/lib /usr/lib64 /usr/local/lib /usr/lib/*-linux-* \
        /run/opengl-driver/lib; do
        [ -e "$folder/$1" ] && return 0
    done
    old_ifs=$IFS
    IFS=:
    for folder in ${LD_LIBRARY_PATH:-}; do
        if [ -n "$folder" ] && [ -e "$folder/$1" ]; then
            IFS=$old_ifs
            return 0
        fi
    done
    IFS=$old_ifs
    return 1
}

chosen_drivers=${VK_DRIVER_FILES:-${VK_ICD_FILENAMES:-}}

# The places where the Vulkan loader looks for the files that describe drivers, one per line.
driver_places() {
    if [ -n "$chosen_drivers" ]; then
        printf '%s\n' "$chosen_drivers" | tr ':' '\n'
        return
    fi
    roots=${XDG_CONFIG_DIRS:-/etc/xdg}:/etc
    roots=$roots:${XDG_DATA_HOME:-${HOME:-}/.local/share}
    roots=$roots:${XDG_DATA_DIRS:-/usr/local/share:/usr/share}:/run/opengl-driver/share
    printf '%s\n' "$roots" | tr ':' '\n' | sed 's|$|/vulkan/icd.d|'
}

# The names of the drivers whose library is really there: containers often carry a description of
# a driver that stayed outside.
drivers() {
    driver_places | while read -r place; do
        find -L "$place" -name '*.json' 2>/dev/null || true
    done | sort | while read -r file; do
        path=$(sed -n 's/.*"library_path"[[:space:]]*:[[:space:]]*"\([^"]*\)".*/\1/p' "$file")
        case $path in
            "") continue ;;
            /*) ;;
            */*) path=$(dirname "$file")/$path ;;
        esac
        if library "$path"; then
            name=$(basename "$file" .json)
            printf '%s\n' "${name%%_icd*}"
        fi
    done | sort -u | tr '\n' ' '
}

look() {
    missing=
    library libvulkan.so.1 || missing="$missing vulkan-loader"
    found=$(drivers)
    [ -n "$found" ] || missing="$missing vulkan-driver"
    command -v cc >/dev/null || missing="$missing c-linker"
    lacking=
    if [ "$for_tests" = yes ]; then
        library libEGL.so.1 || lacking="$lacking egl"
        command -v spirv-val >/dev/null || lacking="$lacking spirv-val"
    fi
}

find_manager() {
    for manager in apt-get dnf zypper pacman apk; do
        command -v "$manager" >/dev/null && return
    done
    manager=
}

# The packages that hold a part, for the package manager of this system.
packages() {
    for part in "$@"; do
        case $manager-$part in
            apt-get-vulkan-loader) say libvulkan1 ;;
            apt-get-vulkan-driver) say mesa-vulkan-drivers ;;
            apt-get-c-linker) say gcc libc6-dev ;;
            apt-get-egl) say libegl1 libgl1-mesa-dri ;;
            apt-get-spirv-val) say spirv-tools ;;
            dnf-vulkan-loader) say vulkan-loader ;;
            dnf-vulkan-driver) say mesa-vulkan-drivers ;;
            dnf-c-linker) say gcc ;;
            dnf-egl) say mesa-libEGL mesa-dri-drivers ;;
            dnf-spirv-val) say spirv-tools ;;
            zypper-vulkan-loader) say libvulkan1 ;;
            zypper-vulkan-driver) say libvulkan_lvp ;;
            zypper-c-linker) say gcc ;;
            zypper-egl) say Mesa-libEGL1 Mesa-dri ;;
            zypper-spirv-val) say spirv-tools ;;
            pacman-vulkan-loader) say vulkan-icd-loader ;;
            pacman-vulkan-driver) say vulkan-swrast ;;
            pacman-c-linker) say gcc ;;
            pacman-egl) say mesa ;;
            pacman-spirv-val) say spirv-tools ;;
            apk-vulkan-loader) say vulkan-loader ;;
            apk-vulkan-driver) say mesa-vulkan-swrast ;;
            apk-c-linker) say gcc musl-dev ;;
            apk-egl) say mesa-egl mesa-dri-gallium ;;
            apk-spirv-val) say spirv-tools ;;
        esac
    done | tr '\n' ' '
}

# The command that a person would type for these packages.
command_for() {
    sudo='sudo '
    [ "$(id -u)" = 0 ] && sudo=
    case $manager in
        apt-get) say "${sudo}apt-get update && ${sudo}apt-get install $*" ;;
        dnf) say "${sudo}dnf install $*" ;;
        zypper) say "${sudo}zypper install $*" ;;
        pacman) say "${sudo}pacman -S $*" ;;
        apk) say "${sudo}apk add $*" ;;
    esac
}

# How to become root without a question; fails where there is no way.
find_root() {
    as_root=
    [ "${FOVEATE_INSTALL:-yes}" != no ] || return 1
    [ "$(id -u)" = 0 ] && return 0
    as_root='sudo -n'
    command -v sudo >/dev/null && sudo -n true 2>/dev/null
}

apt() {
    # shellcheck disable=SC2086 # empty, or a command and its flag
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120 \
        -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20 "$@"
}

install() {
    say "Installing with apt-get: $*"
    # Fresh containers have no package lists. One source that cannot be reached need not matter.
    apt update || say "apt-get update failed; trying with the package lists that are there"
    apt install -y --no-install-recommends "$@"
}

if ! command -v cargo >/dev/null; then
    if [ -x "${HOME:-}/.cargo/bin/cargo" ]; then
        # shellcheck disable=SC2016 # the user's shell is to expand it
        stop 'cargo is installed, but not on PATH. Run:  . "$HOME/.cargo/env"'
    fi
    stop "cargo was not found. Install Rust 1.95 or newer, as https://rustup.rs says, and run this again."
fi

case $(uname -s) in
    Darwin)
        say "Metal is part of macOS: nothing to install"
        exit 0
        ;;
    MINGW* | MSYS* | CYGWIN*)
        say "Direct3D 12 is part of Windows, its software device WARP too: nothing to install"
        exit 0
        ;;
esac

look
if [ -n "$chosen_drivers" ] && [ -z "$found" ]; then
    stop "VK_DRIVER_FILES or VK_ICD_FILENAMES is set to '$chosen_drivers', and no driver is there. Correct it, or unset it."
fi
find_manager
if [ -n "$missing$lacking" ]; then
    # shellcheck disable=SC2046,SC2086 # lists of words
    set -- $(packages $missing $lacking)
    if [ "$manager" = apt-get ] && find_root; then
        say "Not found on this system:$missing$lacking"
        # What is needed first: what only some tests use must not stand in its way.
        # shellcheck disable=SC2046,SC2086 # lists of words
        if [ -n "$missing" ] && ! install $(packages $missing); then
            stop "apt-get could not install them. Try it by hand:  $(command_for "$@")"
        fi
        # shellcheck disable=SC2046,SC2086 # lists of words
        if [ -n "$lacking" ] && ! install $(packages $lacking); then
            say "apt-get could not install what some tests use"
        fi
        look
        if [ -n "$missing" ]; then
            stop "still not found after the installation:$missing. Try by hand:  $(command_for "$@")"
        fi
    elif [ -n "$missing" ] && [ -n "$manager" ]; then
        stop "not found on this system:$missing. To install what is missing, run:  $(command_for "$@")"
    elif [ -n "$missing" ]; then
        stop "not found on this system:$missing. Install the Vulkan loader (libvulkan.so.1), a Vulkan driver (Mesa's lavapipe needs no GPU) and a C compiler with your package manager."
    fi
fi
if [ -n "$lacking" ]; then
    # shellcheck disable=SC2046,SC2086 # lists of words
    hint=$(command_for $(packages $lacking))
    say "Tests leave out what needs this:$lacking${hint:+. To add it:  $hint}"
fi
say "Vulkan drivers found: ${found% }"
