#!/bin/sh
# Sets up the peers of the comparison, each on its own, under target/peers; nothing else is touched.
#
#   benches/peers/setup.sh                      all of them
#   benches/peers/setup.sh torch onnxruntime    some of: burn torch onnxruntime tinygrad
#
# burn         builds a crate of its own (cargo; 15 to 30 minutes on two cores, 3 GB)
# torch        PyTorch (python3 with venv; 5 GB, as the package brings CUDA)
# onnxruntime  onnxruntime-webgpu (python3 with venv), and a small Vulkan layer (gcc, Vulkan headers)
# tinygrad     tinygrad and Dawn's library (the same, and on Linux the same layer)
#
# What is there already is left alone. What could not be set up is named at the end, with the remedy,
# and the exit code is 1; the comparison runs without it and says so.

set -u

here=$(cd "$(dirname "$0")" && pwd)
to=$(cd "$here/../.." && pwd)/target/peers
python=$to/venv/bin/python
pins=$here/python/requirements.txt
missing=

say() {
    printf '%s\n' "$*"
}

# lacks PEER REMEDY
lacks() {
    missing="$missing
  $1: $2"
    return 1
}

# venv PEER: the virtual environment that the Python peers share
venv() {
    [ -x "$python" ] && "$python" -m pip --version >/dev/null 2>&1 && return
    python3 -m venv "$to/venv" ||
        lacks "$1" "python3 cannot make a virtual environment; install it (Debian: python3-venv)"
}

# packages PEER PACKAGE ...: installs them at the versions in requirements.txt
packages() {
    peer=$1
    shift
    venv "$peer" || return
    "$python" -m pip install --quiet --disable-pip-version-check --constraint "$pins" "$@" ||
        lacks "$peer" "pip could not install $*; see its message above"
}

# header_folder: prints where vulkan/vk_layer.h is
header_folder() {
    for folder in "${VULKAN_SDK:-/nowhere}/include" /usr/include /usr/local/include \
        "$to/vulkan/usr/include"; do
        if [ -e "$folder/vulkan/vk_layer.h" ]; then
            say "$folder"
            return
        fi
    done
    # Debian and Ubuntu: the package is unpacked here and not installed.
    mkdir -p "$to/vulkan" && cd "$to/vulkan" || return 1
    apt-get download libvulkan-dev >&2 && dpkg-deb -x libvulkan-dev_*.deb . || return 1
    say "$to/vulkan/usr/include"
}

# layer PEER: the Vulkan layer, see layer/foveate_peers.c
layer() {
    [ "$(uname -s)" = Linux ] || return 0
    library=$to/layer/libVkLayer_foveate_peers.so
    mkdir -p "$to/layer"
    headers=$(header_folder) || {
        lacks "$1" "no Vulkan headers; install them (Debian: libvulkan-dev) for the layer that lets Dawn run on older lavapipe"
        return
    }
    if gcc -O2 -Wall -Wextra -shared -fPIC -fvisibility=hidden -I "$headers" \
        -o "$library" "$here/layer/foveate_peers.c"; then
        cp "$here/layer/VkLayer_foveate_peers.json" "$to/layer/"
    else
        lacks "$1" "gcc could not build the Vulkan layer; see its message above"
    fi
}

set_up_burn() {
    if ! command -v cargo >/dev/null; then
        lacks burn "cargo was not found; install Rust as https://rustup.rs says"
        return
    fi
    CARGO_TARGET_DIR=$to/burn cargo build --locked --release \
        --manifest-path "$here/burn/Cargo.toml" ||
        lacks burn "it does not build here; see cargo's message above"
}

set_up_torch() {
    packages torch numpy torch
}

set_up_onnxruntime() {
    packages onnxruntime numpy onnx onnxruntime-webgpu && layer onnxruntime
}

set_up_tinygrad() {
    packages tinygrad numpy tinygrad dawn-python && layer tinygrad
}

[ $# -gt 0 ] || set -- torch onnxruntime tinygrad burn
for peer in "$@"; do
    case $peer in
        burn | torch | onnxruntime | tinygrad) ;;
        *)
            printf 'usage: %s [burn|torch|onnxruntime|tinygrad ...]\n' "$0" >&2
            exit 2
            ;;
    esac
done

mkdir -p "$to"
for peer in "$@"; do
    say "== $peer"
    "set_up_$peer" && say "$peer is set up"
done
if [ -n "$missing" ]; then
    say "Not set up:$missing"
    exit 1
fi
