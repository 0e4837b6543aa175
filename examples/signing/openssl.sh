#!/bin/sh
# A signing plug-in of cconvert: signs with OpenSSL and a key file. Needs jq.
# Usage: openssl.sh KEY.pem
set -eu
question=$(cat)
public=$(openssl pkey -in "$1" -pubout)
if [ "$(printf %s "$question" | jq -r .operation)" = public-key ]; then
	jq -n --arg key "$public" '{version: 1, public_key: $key}'
	exit
fi
signature=$(printf %s "$question" | jq -r .to_be_signed | base64 -d | openssl dgst -sha256 -sign "$1" | base64 -w0)
jq -n --arg key "$public" --arg signature "$signature" '{version: 1, public_key: $key, signature: $signature}'
