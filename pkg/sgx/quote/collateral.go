package quote

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cconvert/cconvert/internal/strictjson"
)

// Collateral is what Intel publishes of platforms (Intel, "PCS API", version 4), as it was received.
type Collateral struct {
	// TCBInfo and QEIdentity are the signed bytes of the values of these names, and the signatures r‖s of 64 bytes.
	TCBInfo             []byte
	TCBInfoSignature    []byte
	QEIdentity          []byte
	QEIdentitySignature []byte
	// TCBInfoChain and QEIdentityChain are the signers' certificates, in PEM.
	TCBInfoChain, QEIdentityChain []byte
	// PCKCRL and RootCRL are revocation lists, in DER: of the authority of platforms, and of the root.
	PCKCRL, RootCRL []byte
}

// ErrCollateral says that something is not what Intel publishes of platforms.
var ErrCollateral = errors.New("not collateral of Intel's")

const maxCollateral = 4 << 20

// Names of the files of a directory with collateral, each as Intel's service answers.
const (
	fileTCBInfo         = "tcb_info.json"
	fileTCBInfoChain    = "tcb_info_issuer_chain.pem"
	fileQEIdentity      = "qe_identity.json"
	fileQEIdentityChain = "qe_identity_issuer_chain.pem"
	filePCKCRL          = "pck_crl.der"
	fileRootCRL         = "root_ca_crl.der"
)

// ReadCollateral reads collateral from a directory, or from a file with all of it as one JSON object, as dcap-qvl
// writes it.
func ReadCollateral(name string) (*Collateral, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		text, err := readFile(name)
		if err != nil {
			return nil, err
		}
		c, err := ParseDocument(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		return c, nil
	}
	files := map[string][]byte{}
	for _, f := range []string{
		fileTCBInfo, fileTCBInfoChain, fileQEIdentity, fileQEIdentityChain, filePCKCRL, fileRootCRL,
	} {
		if files[f], err = readFile(filepath.Join(name, f)); err != nil {
			return nil, err
		}
	}
	c := &Collateral{
		TCBInfoChain: files[fileTCBInfoChain], QEIdentityChain: files[fileQEIdentityChain],
		PCKCRL: RevocationList(files[filePCKCRL]), RootCRL: RevocationList(files[fileRootCRL]),
	}
	if c.TCBInfo, c.TCBInfoSignature, err = ParseSigned(files[fileTCBInfo], "tcbInfo"); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(name, fileTCBInfo), err)
	}
	c.QEIdentity, c.QEIdentitySignature, err = ParseSigned(files[fileQEIdentity], "enclaveIdentity")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(name, fileQEIdentity), err)
	}
	return c, nil
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxCollateral+1))
	if err == nil && len(b) > maxCollateral {
		err = fmt.Errorf("%s: %w: it has more than %d bytes", name, ErrCollateral, maxCollateral)
	}
	return b, err
}

// ParseSigned splits an answer of Intel's service into the value of a name, whose bytes are what is signed, and the
// signature.
func ParseSigned(answer []byte, name string) (value, signature []byte, err error) {
	if err := strictjson.Check(answer, strictjson.Rules{MaxList: 10_000}); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrCollateral, err)
	}
	var parts map[string]json.RawMessage
	if err := json.Unmarshal(answer, &parts); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrCollateral, err)
	}
	var text string
	if err := json.Unmarshal(parts["signature"], &text); err != nil {
		return nil, nil, fmt.Errorf("%w: it has no signature", ErrCollateral)
	}
	if signature, err = hex.DecodeString(text); err != nil || parts[name] == nil {
		return nil, nil, fmt.Errorf("%w: it has no %s, or its signature is not in hexadecimal", ErrCollateral, name)
	}
	return parts[name], signature, nil
}

// ParseDocument reads collateral as dcap-qvl writes it: one JSON object.
func ParseDocument(text []byte) (*Collateral, error) {
	if err := strictjson.Check(text, strictjson.Rules{MaxList: 10_000}); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCollateral, err)
	}
	var d document
	if err := json.Unmarshal(text, &d); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCollateral, err)
	}
	c := &Collateral{
		TCBInfo: []byte(d.TCBInfo), TCBInfoChain: []byte(d.TCBInfoChain), QEIdentity: []byte(d.QEIdentity),
		QEIdentityChain: []byte(d.QEIdentityChain), PCKCRL: RevocationList([]byte(d.PCKCRL)),
		RootCRL: RevocationList([]byte(d.RootCRL)),
	}
	var err error
	if c.TCBInfoSignature, err = hex.DecodeString(d.TCBInfoSignature); err != nil {
		return nil, fmt.Errorf("%w: tcb_info_signature: %w", ErrCollateral, err)
	}
	if c.QEIdentitySignature, err = hex.DecodeString(d.QEIdentitySignature); err != nil {
		return nil, fmt.Errorf("%w: qe_identity_signature: %w", ErrCollateral, err)
	}
	return c, nil
}

// document is collateral as dcap-qvl writes it.
type document struct {
	TCBInfo             string `json:"tcb_info"`
	TCBInfoSignature    string `json:"tcb_info_signature"`
	TCBInfoChain        string `json:"tcb_info_issuer_chain"`
	QEIdentity          string `json:"qe_identity"`
	QEIdentitySignature string `json:"qe_identity_signature"`
	QEIdentityChain     string `json:"qe_identity_issuer_chain"`
	PCKCRL              string `json:"pck_crl"`
	RootCRL             string `json:"root_ca_crl"`
}

// Document is the form that ParseDocument reads.
func (c *Collateral) Document() ([]byte, error) {
	return json.Marshal(document{
		TCBInfo: string(c.TCBInfo), TCBInfoSignature: hex.EncodeToString(c.TCBInfoSignature),
		TCBInfoChain: string(c.TCBInfoChain), QEIdentity: string(c.QEIdentity),
		QEIdentitySignature: hex.EncodeToString(c.QEIdentitySignature), QEIdentityChain: string(c.QEIdentityChain),
		PCKCRL: hex.EncodeToString(c.PCKCRL), RootCRL: hex.EncodeToString(c.RootCRL),
	})
}

// RevocationList returns a list in DER, which caches answer in hexadecimal, and files have in PEM.
func RevocationList(b []byte) []byte {
	if block, _ := pem.Decode(b); block != nil {
		return block.Bytes
	}
	if plain, err := hex.DecodeString(string(bytes.TrimSpace(b))); err == nil {
		return plain
	}
	return b
}
