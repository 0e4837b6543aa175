package inspect

// Parts of an image, by which Damage says what is wrong.
const (
	PartLayers      = "layers"      // blobs, their archives, and their number and order
	PartOnTop       = "on-top"      // nothing was put over what was measured
	PartSigStruct   = "sigstruct"   // as the CPU checks it
	PartMeasurement = "measurement" // MRENCLAVE of the enclave image and the manifest
	PartRuntime     = "runtime"     // the runtime's files
	PartEncrypted   = "encrypted"   // ciphertexts, and that there is no plain text of them
	PartAgent       = "agent"       // what gets secrets, and what it is told
	PartPolicy      = "policy"      // the manifest is what comes of the recipe and these files
)

// Damage is a part of an image that is there and cannot be read, or is gone: what a check is for.
type Damage struct {
	Part string
	Err  error
}

func (d *Damage) Error() string { return d.Err.Error() }

func (d *Damage) Unwrap() error { return d.Err }
