package verify

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"

	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/sbom"
)

// Evidence is what is attached to an image.
type Evidence []attest.Found

// evidence compares what is attached with the image, and keeps what does not contradict it: nothing else counts.
func (v *verification) evidence(found Evidence) {
	if len(found) == 0 {
		v.skip(CheckEvidence, "nothing is attached to the image")
		return
	}
	var problems []string
	signed, others := 0, 0
	for _, f := range found {
		against, compared := v.contradictions(f)
		if !compared {
			others++
		}
		for _, p := range against {
			problems = append(problems, fmt.Sprintf("%s: %s", f.Digest, p))
		}
		if len(against) > 0 {
			continue
		}
		if f.Verified {
			signed++
		}
		v.sound = append(v.sound, f)
	}
	detail := fmt.Sprintf("%d statements and reference values are attached, %d of them signed by an expected key",
		len(found), signed)
	if others > 0 {
		detail += fmt.Sprintf("; %d by other programs, or of kinds that are not known, were compared with nothing",
			others)
	}
	v.add(CheckEvidence, detail+"; no other one contradicts the image", problems)
}

// contradictions says in what a piece of evidence differs from the image. What others have made is not compared, but
// for what it is about.
func (v *verification) contradictions(f attest.Found) (problems []string, compared bool) {
	c := v.c
	if f.Err != nil {
		return []string{f.Err.Error()}, true
	}
	if c.SigStruct == nil {
		return []string{"it is about an enclave, and the image has no SIGSTRUCT"}, true
	}
	enclave := attest.NewEnclave(c.SigStruct)
	if f.Statement == nil {
		if !sameCoRIM(f.CoRIM, enclave) {
			return []string{"the CoRIM is not that of this enclave"}, true
		}
		return nil, true
	}
	if !slices.ContainsFunc(f.Statement.Subject, func(r attest.Resource) bool { return r.Is(c.Digest) }) {
		problems = append(problems, "the statement is about another image")
	}
	var more []string
	switch kind := f.Statement.PredicateType; {
	case kind == attest.IdentityType:
		more, compared = v.otherIdentity(f.Statement.Predicate, enclave), true
	case sbom.KindOf(kind) != "":
		more, compared = v.billProblems(f.Statement)
	case kind == attest.ProvenanceType:
		more, compared = v.otherProvenance(f.Statement.Predicate)
	}
	return append(problems, more...), compared
}

// otherIdentity says in what an identity differs from that of the image, but for what only the conversion has seen: the
// name of the source, and findings.
func (v *verification) otherIdentity(text []byte, enclave attest.Enclave) (problems []string) {
	c := v.c
	var said attest.Identity
	if err := json.Unmarshal(text, &said); err != nil {
		return []string{err.Error()}
	}
	if known, err := json.Marshal(said); err == nil { // what a field says that is not known was not checked
		problems = append(problems, statedOtherwise(known, text)...)
	}
	problems = append(problems, differentFields(said.Enclave, enclave)...)
	if said.Simulated != c.Simulated() {
		problems = append(problems, "it states that there is an enclave, or none, and the image says otherwise")
	}
	if said.EnclaveSize != c.Enclave.EnclaveSize || said.MaxThreads != c.Enclave.MaxThreads ||
		said.EDMM != c.Enclave.EDMM {
		problems = append(problems, "it states another enclave size, number of threads or way to add memory")
	}
	if r := c.Recipe; r != nil {
		// one without is of somebody who did not look at it
		source := attest.NewResource(said.Source.Name, r.Source)
		if len(said.Source.Digest) > 0 && !reflect.DeepEqual(said.Source, source) {
			problems = append(problems, "it states another source, "+inspect.Text(said.Source.Digest))
		}
		runtime := attest.Runtime{Kind: r.Runtime.Kind, Version: r.Runtime.Version, Digest: r.Runtime.Digest}
		if said.Runtime.Digest == "" {
			runtime.Version, runtime.Digest = "", ""
		}
		if said.Runtime != runtime {
			problems = append(problems, fmt.Sprintf("it states another runtime, %s %q %s", said.Runtime.Kind,
				said.Runtime.Version, said.Runtime.Digest))
		}
		if options, err := json.Marshal(r.Options); err != nil || !sameJSON(options, said.Options) {
			problems = append(problems, "it states other options")
		}
		if said.Epoch != r.Epoch {
			problems = append(problems, "it states another format epoch")
		}
	}
	return problems
}

// otherProvenance says in what a provenance differs from that of the recipe, which is made again. Only the name of the
// source and the version of the program are its own. One by another program is not compared.
func (v *verification) otherProvenance(text []byte) (problems []string, compared bool) {
	var said attest.Provenance
	if err := json.Unmarshal(text, &said); err != nil {
		return []string{err.Error()}, true
	}
	r := v.c.Recipe
	if r == nil || !said.Ours() {
		return nil, false
	}
	from, err := json.Marshal(said.BuildDefinition.ExternalParameters["source"])
	var source attest.Resource
	if err != nil || json.Unmarshal(from, &source) != nil || !source.Is(r.Source) {
		return []string{"it states another source, " + inspect.Text(from)}, true
	}
	options, err := json.Marshal(r.Options)
	if err != nil {
		return []string{err.Error()}, true
	}
	runtime := attest.NewResource(r.Runtime.Kind, r.Runtime.Digest)
	again, err := json.Marshal(attest.NewProvenance(attest.NewResource(source.Name, r.Source), runtime,
		json.RawMessage(options), said.RunDetails.Builder.Version["cconvert"]))
	if err != nil {
		return []string{err.Error()}, true
	}
	return statedOtherwise(again, text), true
}

// statedOtherwise names the keys in which what is stated differs from what is so.
func statedOtherwise(want, said []byte) (problems []string) {
	for _, p := range configProblems(want, said) {
		problems = append(problems, "it states something else: "+p)
	}
	return problems
}

// differentFields names the JSON fields in which two values differ.
func differentFields(said, have attest.Enclave) []string {
	a, err := json.Marshal(said)
	if err != nil {
		return []string{err.Error()}
	}
	b, err := json.Marshal(have)
	if err != nil {
		return []string{err.Error()}
	}
	return statedOtherwise(b, a)
}

func sameJSON(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// sameCoRIM reports whether a CoRIM is that of an enclave, whatever name it has for it.
func sameCoRIM(b []byte, e attest.Enclave) bool {
	id, err := attest.CoRIMID(b)
	if err != nil {
		return false
	}
	want, err := e.CoRIM(id)
	return err == nil && bytes.Equal(want, b)
}
