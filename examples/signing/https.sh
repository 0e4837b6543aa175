#!/bin/sh
# A signing plug-in of cconvert: asks a signing service over HTTPS, which speaks the same protocol. CURL_CA_BUNDLE
# names other certificate authorities, SIGNER_CERT and SIGNER_KEY the files by which the service knows the caller.
# Usage: https.sh URL
set -eu
exec curl --silent --show-error --fail --max-time 60 --proto =https \
	${SIGNER_CERT:+--cert "$SIGNER_CERT"} ${SIGNER_KEY:+--key "$SIGNER_KEY"} \
	--header 'Content-Type: application/json' --data-binary @- "$1"
