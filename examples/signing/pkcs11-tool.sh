#!/bin/sh
# A signing plug-in of cconvert: signs in a PKCS#11 token with OpenSC's pkcs11-tool. Needs jq and openssl.
# Usage: PIN=… pkcs11-tool.sh MODULE TOKEN LABEL
set -eu
question=$(cat)
token() { module=$1 label=$2 object=$3; shift 3; pkcs11-tool --module "$module" --token-label "$label" --label "$object" "$@"; }
public=$(token "$1" "$2" "$3" --read-object --type pubkey | openssl rsa -pubin -inform DER -pubout 2>/dev/null)
if [ "$(printf %s "$question" | jq -r .operation)" = public-key ]; then
	jq -n --arg key "$public" '{version: 1, public_key: $key}'
	exit
fi
bytes=$(mktemp)
trap 'rm -f "$bytes"' EXIT
printf %s "$question" | jq -r .to_be_signed | base64 -d >"$bytes"
signature=$(token "$1" "$2" "$3" --login --pin env:PIN --sign --mechanism SHA256-RSA-PKCS --input-file "$bytes" | base64 -w0)
jq -n --arg key "$public" --arg signature "$signature" '{version: 1, public_key: $key, signature: $signature}'
