package batch_test

import (
	"bytes"
	"context"
	"encoding/json"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/pkg/image"
)

// rawConfig is an image with a configuration of somebody's own.
type rawConfig struct {
	rawImage
	config []byte
}

func (r rawConfig) RawConfigFile() ([]byte, error) { return r.config, nil }
func (r rawConfig) ConfigName() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(r.config))
	return h, err
}

// A configuration that ends too early, with the digest that it should have, is no failure that may pass.
func TestConfigurationThatEnds(t *testing.T) {
	b := newBench(t)
	b.push(1)
	tag, err := name.NewTag(b.reg.Host + "/app:0")
	require.NoError(t, err)
	img, err := remote.Image(tag)
	require.NoError(t, err)
	raw, err := img.RawManifest()
	require.NoError(t, err)
	var m map[string]any
	require.NoError(t, json.Unmarshal(raw, &m))
	config := []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"la`)
	h, size, err := v1.SHA256(bytes.NewReader(config))
	require.NoError(t, err)
	c := m["config"].(map[string]any)
	c["digest"], c["size"] = h.String(), size
	raw, err = json.Marshal(m)
	require.NoError(t, err)
	changed := rawConfig{rawImage{img, raw}, config}
	require.NoError(t, remote.Write(tag, changed))
	_, err = b.worker.Convert(context.Background(), b.job(0))
	require.Error(t, err)
	assert.False(t, image.Transient(err), "%v", err)
}
