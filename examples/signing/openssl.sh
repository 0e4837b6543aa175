#!/bin/sh
# A signing plug-in of cconvert: signs with OpenSSL and a key file. Needs jq.
# Usage: openssl.sh KEY.pem
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/question"
openssl pkey -in "$1" -pubout -out "$work/public"
if [ "$(jq -r .operation "$work/question")" = public-key ]; then
	jq -n --rawfile key "$work/public" '{version: 1, public_key: $key}'
	exit
fi
jq -r .to_be_signed "$work/question" | base64 -d >"$work/bytes"
openssl dgst -sha256 -sign "$1" -out "$work/signature" "$work/bytes"
base64 -w0 "$work/signature" >"$work/encoded"
jq -n --rawfile key "$work/public" --rawfile signature "$work/encoded" '{version: 1, public_key: $key, signature: $signature}'
