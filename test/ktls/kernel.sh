#!/bin/sh
# Makes the kernel that the test of this directory boots: the newest cloud
# kernel of Debian's backports for amd64, from the mirror of this host, which must
# have apt and Debian's keyring. Installs nothing.
#
#	test/ktls/kernel.sh DIR     DIR/vmlinuz and DIR/modules/*.ko come to be
set -eu
dir=${1:?want the directory}
suite=${SUITE:-trixie-backports}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep '/debian/*$' | head -n 1 || true)
[ -n "$mirror" ] || { echo "apt knows no mirror of Debian" >&2; exit 1; }
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/debs" "$work/root"
chmod 755 "$work"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/sources.list"
cat >"$work/apt.conf" <<END
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State::lists "$work/lists";
Dir::Cache "$work/cache";
APT::Sandbox::User "root";
APT::Architecture "amd64";
APT::Architectures "amd64";
END
export APT_CONFIG="$work/apt.conf"
apt-get -qq update
image=$(apt-cache search --names-only '^linux-image-[0-9.]+\+deb[0-9]+-cloud-amd64$' | cut -d' ' -f1 | sort -V | tail -n 1)
[ -n "$image" ] || { echo "no kernel in $suite of $mirror" >&2; exit 1; }
# The newer ones are in parts.
parts=$(apt-cache depends "$image" | sed -n 's/^ *Depends: \(linux-\(binary\|modules\)-.*\)/\1/p')
cd "$work/debs"
apt-get -qq download "$image" $parts
for deb in *.deb; do dpkg -x "$deb" "$work/root"; done
mkdir -p "$dir/modules"
for name in tls gcm gf128mul ghash-generic ctr seqiv geniv crypto_null chacha20poly1305 chacha chacha_generic \
	poly1305_generic libchacha libpoly1305 libchacha20poly1305; do
	find "$work/root" -name "$name.ko.xz" | while read -r module; do xz -dc "$module" >"$dir/modules/$name.ko"; done
done
find "$work/root" -name 'vmlinuz*' -type f -exec cp {} "$dir/vmlinuz" \;
echo "$image" >"$dir/version"
cat "$dir/version"
