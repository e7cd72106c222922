#!/bin/sh
# Runs inside the new root at the end of its build, with the network up.
# Arguments: the user for unprivileged work, then the packages to take from PyPI.
set -eu
builder=$1
shift

useradd --create-home --shell /bin/bash "$builder"
install -d -o "$builder" -g "$builder" /build

python3 -m venv --system-site-packages /opt/testenv
/opt/testenv/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check "$@"

# Nothing in a container without network and without hardware has work for these, and some of them fail there.
systemctl mask --quiet systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer man-db.timer e2scrub_all.timer fstrim.timer systemd-timesyncd.service getty.target \
    console-getty.service
# Tests start these themselves, with a configuration of their own.
systemctl mask --quiet prometheus.service prometheus-node-exporter.service haproxy.service nginx.service
systemctl set-default --quiet multi-user.target

echo bed >/etc/hostname
printf '127.0.0.1 localhost bed\n::1 localhost\n' >/etc/hosts

# A journal that keeps every line of a test and is gone with the bed.
install -d /etc/systemd/journald.conf.d
cat > /etc/systemd/journald.conf.d/bed.conf <<'CONF'
[Journal]
Storage=volatile
RuntimeMaxUse=512M
CONF

# Every model of a test starts with the shaders that the build compiled. Delete this drop-in to see a cold start.
install -d /usr/local/lib/bed /etc/systemd/system/llamad@.service.d
cat > /usr/local/lib/bed/seed-shaders <<'SCRIPT'
#!/bin/sh
set -eu
own=/var/cache/llamad/$1
[ -e "$own/mesa_shader_cache" ] || cp -r /usr/local/lib/bed/shaders/mesa_shader_cache "$own/"
chown -R --reference="$own" "$own/mesa_shader_cache"
SCRIPT
chmod 755 /usr/local/lib/bed/seed-shaders
cat > /etc/systemd/system/llamad@.service.d/bed-shaders.conf <<'CONF'
[Service]
ExecStartPre=+/usr/local/lib/bed/seed-shaders %i
CONF

rm -f /etc/dpkg/dpkg.cfg.d/99mmdebstrap /etc/apt/apt.conf.d/99mmdebstrap
rm -rf /root/.cache /var/cache/apt/archives/*.deb
