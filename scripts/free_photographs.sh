#!/bin/sh
# Collects the photographs and radiance maps under free licences from which the default weights are trained.
# Usage: scripts/free_photographs.sh FOLDER     (Debian 12 or a relative; needs apt-get, dpkg and npm)
# Licences and authors of every picture: ffmef/weights/mef.md.
set -eu
[ $# -eq 1 ] || { sed -n '2,3p' "$0" >&2; exit 2; }
mkdir -p "$1"
target=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

apt-get download lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 mate-backgrounds plasma-workspace-wallpapers blender-data
for package in *.deb; do dpkg -x "$package" .; done

for name in Bridge Dragonfly Kleiber Picture_0B Picture_1A Wine aitzgorri free friends greentock life picosdeeuropa \
            seeding sunset; do
    cp usr/share/backgrounds/"$name"_* "$target"
done
cp usr/share/backgrounds/mate/nature/*.jpg "$target"
for name in BytheWater ColdRipple ColorfulCups DarkestHour EveningGlow FallenLeaf Grey Kite OneStandsOut Path \
            summer_1am; do
    cp "usr/share/wallpapers/$name/contents/images/2560x1600.jpg" "$target/plasma_$name.jpg"
done
for name in city courtyard forest interior night sunset; do
    cp "usr/share/blender/datafiles/studiolights/world/$name.exr" "$target/bl_$name.exr"
done

# A JavaScript package of radiance maps: each is a module that holds the file in base64.
npm pack --silent @pmndrs/assets@1.7.0 > /dev/null
tar -xzf pmndrs-assets-*.tgz
for module in package/hdri/*.exr.js; do
    name=$(basename "$module" .exr.js)
    case $name in studio | sky) continue ;; esac
    sed -n 's/.*base64,\([A-Za-z0-9+\/=]*\).*/\1/p' "$module" | base64 -d > "$target/pm_$name.exr"
done
echo "$(ls "$target" | wc -l) pictures in $target"
