# shellcheck shell=bash
# Programs at work in containers.
