package manifest

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What only an agent sees as it is on the host does not weaken an enclave, but anything else does that is allowed.
func TestAllowedForTheAgent(t *testing.T) {
	const (
		view   = `{path = "/cconvert/ciphertexts/srv/app", uri = "file:/srv/app"},`
		sealed = `{type = "encrypted", path = "/srv/app", uri = "file:/srv/app", key_name = "files"},`
	)
	for name, c := range map[string]struct {
		mounts, allowed string
		weak            bool
	}{
		"an agent's":              {sealed + view, `"file:/srv/app"`, false},
		"no mount of the agent's": {sealed, `"file:/srv/app"`, true},
		"not encrypted":           {view, `"file:/srv/app"`, true},
		"another one, too":        {sealed + view, `"file:/srv/app", "file:/etc/x"`, true},
		"one above":               {sealed + view, `"file:/srv"`, true},
		"no file":                 {sealed + view, `"dev:/srv/app"`, true},
		"the agent's mount leads astray": {
			sealed + `{path = "/cconvert/ciphertexts/srv/app", uri = "file:/usr"},`, `"file:/usr"`, true,
		},
		"covered by a plain mount": {
			sealed + view + `{path = "/srv/app", uri = "file:/srv/app"},`, `"file:/srv/app"`, true,
		},
		"by another name": {
			sealed + view + `{path = "/a", uri = "file:/srv/app"},`, `"file:/srv/app"`, true,
		},
		"a part by another name": {
			sealed + view + `{path = "/a", uri = "file:/srv/app/sub"},`, `"file:/srv/app"`, true,
		},
		"a directory above by other name": {
			sealed + view + `{path = "/a", uri = "file:/srv"},`, `"file:/srv/app"`, true,
		},
		"encrypted by that name, too": {
			sealed + view + `{path = "/a", uri = "file:/srv"}, ` +
				`{type = "encrypted", path = "/a/app", uri = "file:/srv/app", key_name = "files"},`,
			`"file:/srv/app"`, false,
		},
		"temporary storage by another name": {
			sealed + view + `{type = "tmpfs", path = "/a"},`, `"file:/srv/app"`, false,
		},
		"a plain directory within": {
			sealed + view + `{path = "/srv/app/link", uri = "file:/opt"},`, `"file:/srv/app"`, false,
		},
		"it leads to itself within": {
			sealed + view + `{path = "/srv/app/link", uri = "file:/srv/app"},`, `"file:/srv/app"`, true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := Parse([]byte("[fs]\nmounts = [" + c.mounts + "]\n[sgx]\nallowed_files = [" + c.allowed + "]\n"))
			require.NoError(t, err)
			weak := []string(nil)
			if c.weak {
				weak = []string{"sgx.allowed_files"}
			}
			assert.Equal(t, weak, m.Weaknesses())
		})
	}
}
