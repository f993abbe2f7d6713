#!/bin/sh
echo merge "$1"
