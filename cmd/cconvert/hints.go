package main

import (
	"crypto/tls"
	"errors"
	"io/fs"
	"net"
	"syscall"

	"github.com/cconvert/cconvert/internal/queue"
	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/launch/process"
	"github.com/cconvert/cconvert/pkg/libos"
	"github.com/cconvert/cconvert/pkg/libos/gramine/enclave"
	"github.com/cconvert/cconvert/pkg/rootfs"
	"github.com/cconvert/cconvert/pkg/rootfs/inflate"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/quote/pcs"
	"github.com/cconvert/cconvert/pkg/sgx/ratls"
	"github.com/cconvert/cconvert/pkg/sgx/signer"
	"github.com/cconvert/cconvert/pkg/verify"
)

// hintFor returns what to do about an error, "" if that is not known.
func hintFor(err error) string {
	var small *enclave.TooSmallError
	var rollback *convert.RollbackError
	var signed *convert.SignerError
	var load *libos.LoadError
	var dns *net.DNSError
	var op *net.OpError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &small):
		return "give the enclave more memory: --memory " + enclave.FormatSize(small.Needed)
	case errors.Is(err, fs.ErrExist):
		return "it is never written over: if it is a key, use it, or choose another file with --out"
	case errors.Is(err, pcs.ErrService):
		return "name another place with --collateral: a cache (PCCS), or a file that \"cconvert quote collateral\" " +
			"wrote where there is a network. SSL_CERT_FILE names the authority of a cache's certificate"
	case errors.Is(err, ratls.ErrEndpoint):
		return "does a TLS server listen there? --sni names the one that is asked for"
	case errors.As(err, &dns) && errors.As(err, &load):
		return "without a network, take the runtime from this machine: --runtime gramine=dir:PREFIX, or --runtime sim"
	case errors.As(err, &dns):
		return "is the name right, and is there a network, or a proxy (HTTPS_PROXY)? " + namesOf(err)
	case errors.As(err, &op) && op.Op == "proxyconnect":
		return "the proxy that HTTPS_PROXY or HTTP_PROXY names does not answer; NO_PROXY names hosts that need none"
	case errors.Is(err, rootfs.ErrLimit):
		return "is the image meant to be that large? Then raise --max-file, --max-layer, --max-image or --max-files"
	case errors.Is(err, convert.ErrReserved):
		return "build the image without /cconvert: what lies there could be taken for a part of the runtime"
	case errors.As(err, &certificate):
		return "if the registry's certificate is by an authority of your own, or of a proxy that reads what is sent, " +
			"name its file with --ca; if it is not valid yet or any more, look at the clock"
	case errors.As(err, &record), errors.Is(err, image.ErrHTTP):
		return "the registry does not speak TLS: if that is meant to be, say --insecure"
	case errors.Is(err, image.ErrCredentials):
		return "try what ~/.docker/config.json names, \"docker-credential-NAME list\", or log in again with \"docker " +
			"login\""
	case errors.Is(err, image.ErrTarget):
		return "make the repository first, or choose another one with --to or --repo"
	case errors.Is(err, inflate.ErrCompression):
		return "compress it anew: skopeo copy --dest-compress-format gzip SOURCE TARGET"
	case errors.Is(err, image.ErrReference):
		return "names are NAME:TAG in lower case, oci:DIR:TAG, oci-archive:FILE, docker-archive:FILE or " +
			"docker-daemon:NAME"
	case errors.Is(err, image.ErrUnauthorized):
		return "for a private registry, log in with \"docker login\": cconvert uses the same credentials. A registry " +
			"may also answer this if there is no such image. " + namesOf(err)
	case errors.Is(err, image.ErrNotFound):
		return "check the name and the tag. " + namesOf(err)
	case errors.Is(err, image.ErrPlatform):
		return "SGX exists on x86-64 only: the image must be built for linux/amd64"
	case errors.Is(err, convert.ErrConverted):
		return "convert the image that it was made from, or look at this one with \"cconvert inspect\""
	case errors.Is(err, convert.ErrNotInRegistry):
		return "name a target in a registry, or leave out what is to be attached: --attest, --attest-key, " +
			"--copy-referrers"
	case errors.Is(err, convert.ErrReferrersTag):
		return "choose another tag with --to"
	case errors.Is(err, convert.ErrFindings):
		return "mend the image as the findings say, see docs/findings.md; --ignore CODE goes on in spite of one"
	case errors.Is(err, inspect.ErrNotConverted):
		return "convert it first: cconvert IMAGE"
	case errors.Is(err, process.ErrImage):
		return "does the image start with \"docker run\"? What does not start there does not start here"
	case errors.Is(err, libos.ErrPinned):
		return "cconvert.lock pins the runtime: bring that one back, or pin this one with \"cconvert runtime lock\", " +
			"which changes every MRENCLAVE"
	case errors.Is(err, libos.ErrNoRuntime):
		return "name a Gramine installation: --runtime gramine=dir:PREFIX, gramine=deb:FILE or gramine=docker://IMAGE"
	case errors.Is(err, sgx.ErrLineEnds):
		return "in a shell: export KEY=\"$(printf '%b' \"$KEY\")\"; or put the key into a file"
	case errors.Is(err, sgx.ErrNoKey):
		return "make a key: cconvert keygen"
	case errors.Is(err, convert.ErrTestKey):
		return "make a key of your own, \"cconvert keygen\"; for a test, --debug makes an enclave that keeps no " +
			"secrets anyway"
	case errors.Is(err, sgx.ErrSignature):
		return "was it made over what \"sign prepare\" gave for this image, by RSA PKCS#1 v1.5 with SHA-256, and is " +
			"the public key the signer's? If the image was converted again since, prepare it again"
	case errors.Is(err, image.ErrMoved):
		return "run the same command again, if this image is still to be there"
	case errors.Is(err, convert.ErrVersionUnknown) && errors.Is(err, image.ErrUnauthorized):
		return "whoever writes there must be able to read what is there; or say --allow-rollback and --replace-signer"
	case errors.Is(err, convert.ErrVersionUnknown):
		return "look at it with \"cconvert inspect\"; store the result under another tag, or say --allow-rollback"
	case errors.As(err, &signed):
		return "use that key, store the result under another tag, or say --replace-signer, with --key or --unsigned"
	case errors.As(err, &rollback):
		return "raise --isv-svn, store the result under another tag, or say --allow-rollback"
	case errors.Is(err, errNoKey):
		return "make one with \"cconvert keygen --out FILE\", keep it safe, and name it with --key: it is the " +
			"identity of your enclaves, so one that is made anew in every run is of no use"
	case errors.Is(err, convert.ErrNotOurs):
		return "only what cconvert has made can be signed by it: convert the image first, with --unsigned if the key " +
			"is elsewhere"
	case errors.Is(err, signer.ErrNoPKCS11):
		return "\"make build-pkcs11\" in cconvert's source makes one that can, with the C library; or sign with " +
			"exec:COMMAND and pkcs11-tool, see docs/signing.md"
	case errors.Is(err, signer.ErrPlugin):
		return "nothing was stored. docs/signing.md has the protocol, and plug-ins to start from"
	case errors.Is(err, verify.ErrFilesKey):
		return "give it with --encrypt-key"
	case errors.Is(err, verify.ErrNotEncrypted):
		return "convert the image that it was made from with --encrypt"
	case errors.Is(err, sgx.ErrPassphrase):
		return "give the passphrase in CCONVERT_KEY_PASSPHRASE or by --key-passphrase-file; no image was stored"
	case errors.Is(err, rootfs.ErrDigest), errors.Is(err, image.ErrDigest):
		return "the image is damaged where it is stored, or on its way: push it again"
	case errors.Is(err, queue.ErrBusy):
		return "wait for it; or, for a queue that several can work on, use --nats"
	case errors.Is(err, queue.ErrSigner):
		return "an image's signer must not depend on which worker takes it: use the same key, or another queue. To " +
			"change the key of all workers, start them anew, the first with --new-signer"
	case errors.Is(err, syscall.ENOSPC):
		return "the disk is full: nothing was changed; make room and run the same command again"
	case errors.Is(err, fs.ErrPermission):
		return "the file or directory belongs to another user"
	case image.Transient(err):
		return "this may be a passing fault: run the same command again"
	}
	return ""
}

// namesOf says how images of this machine are named, with the name itself if the error is about one that has no
// registry: to cconvert such a name is one at Docker's own registry, to somebody who has just built it it is not.
func namesOf(err error) string {
	var opening *image.OpenError
	if errors.As(err, &opening) {
		if local := opening.Ref.InDocker(); local != "" {
			return "If Docker on this machine has the image, write " + local
		}
		if opening.Ref.Transport != image.Registry {
			return "In a registry it is REGISTRY/NAME:TAG"
		}
	}
	return "An image that Docker has is docker-daemon:NAME, a saved one docker-archive:FILE, a layout oci:DIR"
}
