#!/bin/sh
# A signing plug-in of cconvert: signs in a PKCS#11 token with OpenSC's pkcs11-tool. Needs jq and openssl.
# Usage: PIN=… pkcs11-tool.sh MODULE TOKEN LABEL
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/question"
module=$1 label=$2 object=$3
token() { pkcs11-tool --module "$module" --token-label "$label" --label "$object" "$@"; }
token --read-object --type pubkey --output-file "$work/public.der" >&2
openssl rsa -pubin -inform DER -in "$work/public.der" -pubout -out "$work/public" 2>/dev/null
if [ "$(jq -r .operation "$work/question")" = public-key ]; then
	jq -n --rawfile key "$work/public" '{version: 1, public_key: $key}'
	exit
fi
jq -r .to_be_signed "$work/question" | base64 -d >"$work/bytes"
token --login --pin env:PIN --sign --mechanism SHA256-RSA-PKCS --input-file "$work/bytes" --output-file "$work/signature" >&2
base64 -w0 "$work/signature" >"$work/encoded"
jq -n --rawfile key "$work/public" --rawfile signature "$work/encoded" '{version: 1, public_key: $key, signature: $signature}'
