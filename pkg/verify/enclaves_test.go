package verify_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/inspect"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/verify"
)

// Enclaves that Intel's tool has signed are found in an image, measured, and told apart from those that were changed.
func TestSDKEnclaves(t *testing.T) {
	var vectors []struct {
		Name      string
		MREnclave sgx.Measurement `json:"mr_enclave"`
		MRSigner  sgx.Measurement `json:"mr_signer"`
	}
	text, err := os.ReadFile("../../testdata/vectors/sgx-sdk/index.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &vectors))
	var files []fixture.Entry
	for _, v := range vectors {
		b, err := os.ReadFile("../../testdata/vectors/sgx-sdk/" + v.Name + ".signed.so")
		require.NoError(t, err)
		files = append(files, fixture.Program("opt/"+v.Name+".so", string(b)))
	}
	reg := fixture.NewRegistry(t)
	push := func(files ...fixture.Entry) string {
		return reg.Push(t, "sdk:1",
			fixture.Image(t, v1.Config{Entrypoint: []string{"/opt/app"}}, fixture.Layer(t, files...)))
	}
	img := open(t, push(files...))
	list, err := inspect.Enclaves(context.Background(), img, inspect.Options{})
	require.NoError(t, err)
	require.Len(t, list, len(vectors))
	found := map[string]inspect.EnclaveFile{}
	for _, f := range list {
		found[f.Path] = f
	}
	expect := verify.Expectations{Layout: inspect.LayoutSDK, AllowDebug: true} // DisableDebug is 0 by default
	for _, v := range vectors {
		f := found["/opt/"+v.Name+".so"]
		assert.Equal(t, v.MREnclave, f.MREnclave, v.Name)
		assert.Equal(t, inspect.KindSDK, f.Kind)
		assert.True(t, f.Measured)
		assert.Empty(t, f.Problem())
		assert.Empty(t, f.MetadataError)
		expect.MREnclave, expect.MRSigner = append(expect.MREnclave, v.MREnclave), []sgx.Measurement{v.MRSigner}
	}
	r, err := verify.OwnEnclaves(context.Background(), img, nil, expect, inspect.Options{})
	require.NoError(t, err)
	assert.True(t, r.Trusted, "%v", r.Checks)

	// What cannot be checked of such an image is not passed over.
	for what, change := range map[string]func(*verify.Expectations){
		verify.CheckAttestedBy: func(e *verify.Expectations) { e.Attested = &attest.PublicKey{} },
		verify.CheckRuntimeIs:  func(e *verify.Expectations) { e.RuntimeDigest = []string{"sha256:00"} },
	} {
		e := expect
		change(&e)
		r, err := verify.OwnEnclaves(context.Background(), img, nil, e, inspect.Options{})
		require.NoError(t, err)
		assert.Equal(t, []string{what}, r.FailedChecks())
		assert.False(t, r.Trusted)
	}

	r, err = verify.OwnEnclaves(context.Background(), img, open(t, push(files...)), expect, inspect.Options{})
	require.NoError(t, err)
	assert.Equal(t, []string{verify.CheckSource}, r.FailedChecks(), "it was made from no other image")
	assert.False(t, r.Trusted)

	for what, c := range map[string]struct {
		change func(*verify.Expectations)
		unmet  string
	}{
		"another kind of image is expected": {func(e *verify.Expectations) { e.Layout = "" }, verify.CheckLayout},
		"one is not expected": {func(e *verify.Expectations) {
			e.MREnclave = e.MREnclave[:1]
		}, verify.CheckMREnclave},
		"nothing is expected": {func(e *verify.Expectations) {
			e.MREnclave, e.MRSigner = nil, nil
		}, verify.CheckAnyIdentity},
		"no debug enclave": {func(e *verify.Expectations) { e.AllowDebug = false }, verify.CheckDebug},
		"a higher version": {func(e *verify.Expectations) { n := uint16(1); e.MinSVN = &n }, verify.CheckSVN},
	} {
		e := expect
		c.change(&e)
		r, err := verify.OwnEnclaves(context.Background(), img, nil, e, inspect.Options{})
		require.NoError(t, err)
		assert.True(t, r.Consistent, what)
		assert.Contains(t, r.Unmet(), c.unmet, what)
	}
	body := []byte(files[0].Body)
	body[0x1000] ^= 1
	changed := files[0]
	changed.Body = string(body)
	r, err = verify.OwnEnclaves(context.Background(), open(t, push(changed)), nil, expect, inspect.Options{})
	require.NoError(t, err)
	assert.Equal(t, []string{verify.CheckMeasurement}, r.FailedChecks())
	_, err = verify.OwnEnclaves(context.Background(), open(t, push(fixture.Program("opt/app", fixture.ELF("")))), nil,
		expect, inspect.Options{})
	assert.ErrorIs(t, err, inspect.ErrNotConverted)
}

// What is checked is what engines unpack: an archive can have a path twice, and layers can go through links.
func TestWhereEnclavesAre(t *testing.T) {
	vector := func(name string) string {
		b, err := os.ReadFile("../../testdata/vectors/sgx-sdk/" + name + ".signed.so")
		require.NoError(t, err)
		return string(b)
	}
	good, evil := vector("default"), vector("one-thread")
	goodEnclave, err := inspect.SDKEnclave(context.Background(), "", []byte(good))
	require.NoError(t, err)
	reg := fixture.NewRegistry(t)
	for what, c := range map[string]struct {
		layers  [][]fixture.Entry
		problem string
	}{
		"as it is": {
			[][]fixture.Entry{{fixture.Program("opt/x", good), fixture.Hardlink("opt/enclave.so", "opt/x")}}, "",
		},
		"updated": {
			[][]fixture.Entry{
				{fixture.Program("opt/enclave.so", evil), fixture.Program("srv/old.so", evil)},
				{fixture.Program("opt/enclave.so", good), fixture.File("srv/.wh.old.so", "")},
			}, "",
		},
		"a hard link to what is replaced": {
			[][]fixture.Entry{{
				fixture.Program("opt/x", evil), fixture.Hardlink("opt/enclave.so", "opt/x"),
				fixture.Program("/opt/x", good),
			}}, "several entries",
		},
		"a link that is replaced": {
			[][]fixture.Entry{{
				fixture.Dir("opt"), fixture.Symlink("d", "opt"), fixture.Program("d/enclave.so", evil),
				fixture.Dir("/d"), fixture.Program("/d/enclave.so", good),
			}}, "several entries",
		},
		"through the link of a lower layer": {
			[][]fixture.Entry{
				{fixture.Program("opt/enclave.so", good), fixture.Symlink("d", "opt")},
				{fixture.Program("d/enclave.so", evil)}, {fixture.File(".wh.d", "")},
			}, "goes through",
		},
		"removed and made anew": {
			[][]fixture.Entry{
				{fixture.Program("opt/enclave.so", good), fixture.Program("srv/evil.so", evil)},
				{fixture.File(".wh.srv", ""), fixture.Dir("srv")},
			}, "makes it anew",
		},
		"removed, and something in it": {
			[][]fixture.Entry{
				{fixture.Program("opt/enclave.so", good), fixture.Program("srv/evil.so", evil)},
				{fixture.File("srv/x", ""), fixture.File(".wh.srv", "")},
			}, "makes it anew",
		},
		"through a link, under another name": {
			[][]fixture.Entry{
				{fixture.Program("opt/enclave.so", good), fixture.Symlink("d", "opt")},
				{fixture.Program("d/evil.so", evil)}, {fixture.File(".wh.d", "")},
			}, "hidden",
		},
		"an opaque marker below a file": {
			[][]fixture.Entry{
				{fixture.Program("opt/enclave.so", good), fixture.Program("opt/evil.so", evil)},
				{fixture.File("opt/evil.so/.wh..wh..opq", "")},
			}, "hidden",
		},
		"a device over it": {
			[][]fixture.Entry{
				{fixture.Program("opt/enclave.so", good), fixture.Program("opt/evil.so", evil)},
				{fixture.Special("opt/evil.so", '3')},
			}, "hidden",
		},
		"an opaque root": {
			[][]fixture.Entry{
				{fixture.Program("opt/evil.so", evil)},
				{fixture.File(".wh..wh..opq", ""), fixture.Program("opt/enclave.so", good)},
			}, "removes all",
		},
	} {
		var layers []v1.Layer
		for _, entries := range c.layers {
			layers = append(layers, fixture.Layer(t, entries...))
		}
		img := open(t, reg.Push(t, "sdk:1", fixture.Image(t, v1.Config{Entrypoint: []string{"/opt/app"}}, layers...)))
		r, err := verify.OwnEnclaves(context.Background(), img, nil, verify.Expectations{
			Layout: inspect.LayoutSDK, AllowDebug: true, MREnclave: []sgx.Measurement{goodEnclave.MREnclave},
		}, inspect.Options{})
		require.NoError(t, err, what)
		assert.Equal(t, c.problem == "", r.Trusted, what)
		if c.problem != "" {
			assert.Equal(t, []string{verify.CheckLayers}, r.FailedChecks(), what)
			assert.Contains(t, fmt.Sprint(r.Checks), c.problem, what)
		}
	}
}

// No header or section makes an enclave one that is not looked at.
func TestHiddenEnclaves(t *testing.T) {
	le := binary.LittleEndian
	signed, err := os.ReadFile("../../testdata/vectors/sgx-sdk/default.signed.so")
	require.NoError(t, err)
	headers := bytes.Clone(signed) // 600 program headers, of which most are of no type
	off, n := le.Uint64(headers[32:]), int(le.Uint16(headers[56:]))
	table := bytes.Clone(headers[off : off+uint64(56*n)])
	le.PutUint64(headers[32:], uint64(len(headers)))
	le.PutUint16(headers[56:], 600)
	headers = append(append(headers, table...), make([]byte, 56*(600-n))...)
	unknown := bytes.Replace(signed, []byte(".note.sgxmeta"), []byte(".note.another"), 1)
	section := bytes.Replace(unknown, []byte(".comment"), []byte(".oeinfo\x00"), 1)
	require.NotEqual(t, unknown, section)
	reg := fixture.NewRegistry(t)
	for what, file := range map[string][]byte{
		"program headers": headers, "another kind": unknown, "a section of Open Enclave without it": section,
	} {
		img := open(t, reg.Push(t, "sdk:1", fixture.Image(t, v1.Config{Entrypoint: []string{"/opt/app"}},
			fixture.Layer(t, fixture.Program("opt/e.so", string(file))))))
		list, err := inspect.Enclaves(context.Background(), img, inspect.Options{})
		require.NoError(t, err)
		assert.Len(t, list, 1, what)
	}
}

// Names of one enclave are measured once, and all enclaves of an image within one bound.
func TestMeasuringIsBounded(t *testing.T) {
	le := binary.LittleEndian
	signed, err := os.ReadFile("../../testdata/vectors/sgx-sdk/default.signed.so")
	require.NoError(t, err)
	_, meta, found := bytes.Cut(signed, le.AppendUint64(nil, 0x86A80294635D0E4C))
	require.True(t, found)
	le.PutUint64(meta[32:], 1<<37)
	heap := meta[le.Uint32(meta[56+1808+8:])-8:]
	le.PutUint16(heap[2:], 3)
	le.PutUint32(heap[4:], 1_500_000) // pages, that are measured
	files := []fixture.Entry{fixture.Program("opt/e", string(signed)), fixture.Program("opt/other", string(signed)+"x")}
	for i := range 90 {
		files = append(files, fixture.Hardlink(fmt.Sprint("opt/e", i), "opt/e"))
	}
	reg := fixture.NewRegistry(t)
	img := open(t, reg.Push(t, "sdk:1", fixture.Image(t, v1.Config{}, fixture.Layer(t, files...))))
	list, err := inspect.Enclaves(context.Background(), img, inspect.Options{})
	require.NoError(t, err)
	require.Len(t, list, 92)
	for _, f := range list { // the bound is enough for one of the two files
		assert.Equal(t, f.Path == "/opt/other", strings.Contains(f.MeasurementError, "all enclaves together"), f.Path)
	}
}
