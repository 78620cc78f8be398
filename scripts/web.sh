#!/bin/sh
# Sees to what the tests of portable plans use besides Rust: Node, and the packages of web/package.json (Dawn, and
# Playwright, which drives a Chromium that is installed). What is missing is said; tests that need it then say that they
# are skipped. With FOVEATE_INSTALL=no it installs nothing.

set -eu
cd "$(dirname "$0")/../web"

skip() {
    printf 'skipped: %s; tests on Dawn and Chromium will be skipped\n' "$*"
    exit 0
}

command -v node >/dev/null && command -v npm >/dev/null ||
    skip 'there is no Node (20 or newer, with npm: https://nodejs.org, Debian and Ubuntu: apt-get install nodejs npm)'
[ "$(node -p 'process.versions.node.split(".")[0] >= 20')" = true ] ||
    skip "Node $(node --version) is too old: take 20 or newer"
if [ ! -e node_modules/.package-lock.json ] || [ package-lock.json -nt node_modules/.package-lock.json ]; then
    [ "${FOVEATE_INSTALL:-yes}" != no ] || skip 'the packages of web/package.json are not there: cd web && npm ci'
    npm ci --no-progress --loglevel=error >/dev/null || skip 'npm ci failed in the folder web'
fi
[ -n "${CHROMIUM:-}" ] || [ -e /usr/bin/chromium ] || [ -e /usr/bin/google-chrome ] ||
    printf 'skipped: there is no Chromium (Debian: apt-get install chromium, or name one in CHROMIUM)\n'
