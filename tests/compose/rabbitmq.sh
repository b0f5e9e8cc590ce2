#!/bin/bash
# Replaces the official image: a user from the environment, and the management plugin.
set -eu
printf 'default_user = %s\ndefault_pass = %s\nloopback_users = none\n' "$RABBITMQ_DEFAULT_USER" "$RABBITMQ_DEFAULT_PASS" > /etc/rabbitmq/conf.d/10-user.conf
echo '[rabbitmq_management].' > /etc/rabbitmq/enabled_plugins
export RABBITMQ_CONFIG_FILES=/etc/rabbitmq/conf.d RUNNING_UNDER_SYSTEMD=true HOME=/var/lib/rabbitmq
chown -R rabbitmq /var/lib/rabbitmq /var/log/rabbitmq
exec setpriv --reuid rabbitmq --regid rabbitmq --clear-groups /usr/lib/rabbitmq/bin/rabbitmq-server
