package keyserver

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/secret"
)

// recordedVault answers as Vault 1.21 does, of which the answers in testdata/vault are ("KV Secrets Engine - Version 2
// (API)", "Transit Secrets Engine (API)", "/auth/token").
type recordedVault struct {
	t *testing.T
	*httptest.Server

	mu      sync.Mutex
	token   string
	entries map[string]map[string]any
	deleted map[string]bool
	sealed  map[string][2]string // ciphertext to plain text and what it belongs to
	fail    int                  // this many answers are that Vault is sealed
	asked   []string
}

func newVault(t *testing.T) *recordedVault {
	v := &recordedVault{
		t: t, token: "hvs.first", entries: map[string]map[string]any{}, deleted: map[string]bool{},
		sealed: map[string][2]string{},
	}
	v.Server = httptest.NewServer(http.HandlerFunc(v.answer))
	t.Cleanup(v.Close)
	t.Setenv("VAULT_ADDR", v.URL)
	return v
}

// recorded is an answer with what varies in it.
func (v *recordedVault) recorded(w http.ResponseWriter, status int, name string, args ...any) {
	text, err := os.ReadFile(filepath.Join("testdata/vault", name+".json"))
	require.NoError(v.t, err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	fmt.Fprintf(w, string(text), args...)
}

func (v *recordedVault) answer(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asked = append(v.asked, r.Method+" "+r.URL.Path)
	if v.fail > 0 {
		v.fail--
		v.recorded(w, http.StatusServiceUnavailable, "sealed")
		return
	}
	if r.Header.Get("X-Vault-Token") != v.token {
		v.recorded(w, http.StatusForbidden, "denied")
		return
	}
	body := map[string]any{}
	if b, err := io.ReadAll(r.Body); err == nil && len(b) > 0 {
		require.NoError(v.t, json.Unmarshal(b, &body))
	}
	text := func(field string) string { s, _ := body[field].(string); return s }
	switch place := strings.TrimPrefix(r.URL.Path, "/v1/"); {
	case place == "auth/token/renew-self":
		v.recorded(w, http.StatusOK, "renewed", v.token)
	case place == "transit/encrypt/app":
		c := fmt.Sprintf("vault:v1:%d", len(v.sealed))
		v.sealed[c] = [2]string{text("plaintext"), text("associated_data")}
		v.recorded(w, http.StatusOK, "encrypted", c)
	case place == "transit/decrypt/app":
		s, ok := v.sealed[text("ciphertext")]
		if !ok || s[1] != text("associated_data") {
			v.recorded(w, http.StatusBadRequest, "undecryptable")
			return
		}
		v.recorded(w, http.StatusOK, "decrypted", s[0])
	case strings.HasPrefix(place, "kv/data/team/app/") && r.Method == http.MethodGet:
		data, ok := v.entries[place]
		switch {
		case v.deleted[place]:
			v.recorded(w, http.StatusNotFound, "deleted")
		case !ok:
			v.recorded(w, http.StatusNotFound, "none")
		default:
			b, err := json.Marshal(data)
			require.NoError(v.t, err)
			v.recorded(w, http.StatusOK, "read", string(b))
		}
	case strings.HasPrefix(place, "kv/data/team/app/"):
		options, _ := body["options"].(map[string]any)
		if _, there := v.entries[place]; there && options["cas"] == 0.0 {
			v.recorded(w, http.StatusBadRequest, "check-and-set")
			return
		}
		v.entries[place], _ = body["data"].(map[string]any)
		v.recorded(w, http.StatusOK, "written")
	default:
		v.recorded(w, http.StatusNotFound, "no-handler", place)
	}
}

func tokenFile(t *testing.T, token string) string {
	file := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(file, []byte(token+"\n"), 0o600))
	return file
}

func openVault(t *testing.T, transit string) *Vault {
	t.Helper()
	v, err := OpenVault(t.Context(), "vault:kv/team/app", transit, tokenFile(t, "hvs.first"), nil)
	require.NoError(t, err)
	return v
}

// What is kept comes back, whoever has written it, and a server works with it.
func TestVault(t *testing.T) {
	for _, transit := range []string{"", "transit/app"} {
		t.Run("transit "+transit, func(t *testing.T) {
			server := newVault(t)
			v := openVault(t, transit)
			value := []byte("a\x00b\xff")
			require.NoError(t, v.Put(t.Context(), "key", value))
			got, err := v.Get(t.Context(), "key")
			require.NoError(t, err)
			assert.Equal(t, value, got)
			_, err = v.Get(t.Context(), "other")
			require.ErrorIs(t, err, ErrNoSecret)

			identity, err := Identity(t.Context(), v, time.Now())
			require.NoError(t, err)
			again, err := Identity(t.Context(), v, time.Now())
			require.NoError(t, err)
			assert.Equal(t, identity.Certificate, again.Certificate)
			assert.ErrorContains(t, v.Put(t.Context(), "_server", []byte("another")), "check-and-set")

			b, err := json.Marshal(server.entries)
			require.NoError(t, err)
			plain := strings.Contains(string(b), base64.StdEncoding.EncodeToString(value))
			assert.Equal(t, transit == "", plain, "%s", b)
			server.entries["kv/data/team/app/by-hand"] = map[string]any{"value": "of a person"}
			got, err = v.Get(t.Context(), "by-hand")
			if transit != "" {
				assert.ErrorIs(t, err, ErrEncrypted, "what is not encrypted may be anybody's")
				server.entries["kv/data/team/app/by-hand"] = server.entries["kv/data/team/app/key"]
				_, err = v.Get(t.Context(), "by-hand")
				assert.ErrorIs(t, err, ErrEncrypted, "a secret in the place of another")
				return
			}
			require.NoError(t, err)
			assert.Equal(t, "of a person", string(got))
			server.deleted["kv/data/team/app/by-hand"] = true
			_, err = v.Get(t.Context(), "by-hand")
			assert.ErrorIs(t, err, ErrNoSecret)
		})
	}
}

// A token that was replaced where it is kept is read again, and Vault is asked again if it is restarted.
func TestVaultTroubles(t *testing.T) {
	server := newVault(t)
	server.entries["kv/data/team/app/one"] = map[string]any{"value": canary}
	file := tokenFile(t, "hvs.first")
	v, err := OpenVault(t.Context(), "vault:kv/team/app", "", file, nil)
	require.NoError(t, err)
	server.mu.Lock()
	assert.Contains(t, server.asked, "PUT /v1/auth/token/renew-self")
	server.token = "hvs.second"
	server.mu.Unlock()
	_, err = v.Get(t.Context(), "one")
	require.ErrorContains(t, err, "permission denied")
	require.NotErrorIs(t, err, ErrUnavailable)
	require.NoError(t, os.WriteFile(file, []byte("hvs.second"), 0o600))
	got, err := v.Get(t.Context(), "one")
	require.NoError(t, err)
	assert.Equal(t, canary, string(got))

	failing := func(times int) {
		server.mu.Lock()
		defer server.mu.Unlock()
		server.fail = times
	}
	failing(1)
	_, err = v.Get(t.Context(), "one")
	require.NoError(t, err)
	failing(100)
	_, err = v.Get(t.Context(), "one")
	require.ErrorIs(t, err, ErrUnavailable)
	failing(0)
	server.entries["kv/data/team/app/long"] = map[string]any{"value": strings.Repeat("x", MaxSecret+1)}
	_, err = v.Get(t.Context(), "long")
	require.ErrorContains(t, err, "more than 1048576 bytes")
	server.entries["kv/data/team/app/longer"] = map[string]any{"value": strings.Repeat("x", maxVaultAnswer)}
	_, err = v.Get(t.Context(), "longer")
	require.ErrorContains(t, err, "too large")
	server.entries["kv/data/team/app/empty"] = map[string]any{"password": "x"}
	_, err = v.Get(t.Context(), "empty")
	require.ErrorIs(t, err, ErrNoSecret)
	_, err = v.Get(t.Context(), "../other")
	require.ErrorIs(t, err, ErrName)
	require.ErrorContains(t, v.Put(t.Context(), "x", make([]byte, MaxSecret+1)), "at most")

	server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = v.Get(ctx, "one")
	require.ErrorIs(t, err, ErrUnavailable)
}

// What names no place in Vault, or would send a token in plain text, is refused.
func TestVaultPlaces(t *testing.T) {
	newVault(t)
	token := tokenFile(t, "hvs.first")
	for _, place := range []string{
		"", "kv", "kv/", "/kv/app", "kv/../sys", "kv/./app", "kv//app", "kv/app?version=1", "kv/a b",
	} {
		_, err := OpenVault(t.Context(), "vault:"+place, "", token, nil)
		assert.ErrorIs(t, err, ErrVaultPlace, place)
	}
	for _, transit := range []string{"transit", "transit/a/b", "transit/..", "transit/"} {
		_, err := OpenVault(t.Context(), "vault:kv/app", transit, token, nil)
		assert.ErrorIs(t, err, ErrVaultPlace, transit)
	}
	_, err := OpenVault(t.Context(), "vault:kv/app", "", "env:NONE", nil)
	require.ErrorIs(t, err, secret.ErrName)
	t.Setenv("VAULT_ADDR", "http://vault.example:8200")
	_, err = OpenVault(t.Context(), "vault:kv/app", "", token, nil)
	require.ErrorContains(t, err, "https:// expected")
}

// A server whose store is away for now says so to the enclave, which asks again, and releases when it is back.
func TestVaultAway(t *testing.T) {
	vault := newVault(t)
	store := openVault(t, "transit/app")
	for name, value := range map[string]string{"password": canary, "token": "x", "files": "0123456789abcdef"} {
		require.NoError(t, store.Put(t.Context(), name, []byte(value)))
	}
	o := newOwner(t, func(options *Options) { options.Store = store })
	got, err := o.ask(all[:1])
	require.NoError(t, err)
	assert.Equal(t, canary, string(got[all[0]].Value))
	vault.mu.Lock()
	vault.fail = 1 << 30
	vault.mu.Unlock()
	r := o.raw()
	status, _ := r.send()
	assert.Equal(t, http.StatusServiceUnavailable, status)
	assert.Contains(t, o.decisions()[1].Reason, "the store cannot be asked")
	vault.mu.Lock()
	vault.fail = 0
	vault.mu.Unlock()
	got, err = o.ask(all[:1])
	require.NoError(t, err)
	assert.Equal(t, canary, string(got[all[0]].Value))
}
