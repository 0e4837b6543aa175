//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cconvert/cconvert/internal/fixture"
	"github.com/cconvert/cconvert/internal/keyserver"
	"github.com/cconvert/cconvert/pkg/attest"
	"github.com/cconvert/cconvert/pkg/sgx"
	"github.com/cconvert/cconvert/pkg/sgx/quote"
)

// secretProvClient has Gramine's own client, its library secret_prov, get its secret from the server: a string, and a
// key to encrypted files. Its files for attestation are pipes here, behind which a simulated machine is.
func secretProvClient(t *testing.T) {
	library := filepath.Join(os.Getenv(gramineDir), "lib/x86_64-linux-gnu/libsecret_prov_attest.so")
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	command(t, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days",
		"2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", file("tls.key"), "-out",
		file("tls.crt"))
	command(t, program, "keygen", "--store", file("store.key"))
	store := []string{"--store", file("secrets"), "--store-key", file("store.key")}
	keep := func(value string) {
		require.NoError(t, os.WriteFile(file("value"), []byte(value), 0o600))
		command(t, program, append([]string{"release", "secret", "one", "--from", file("value")}, store...)...)
	}
	keep(secretKey + "\x00") // for a variable

	report := quote.Report{
		MREnclave: sgx.Measurement{1}, MRSigner: sgx.Measurement{2}, Attributes: sgx.Attributes{Flags: 5, XFRM: 3},
	}
	policy := &keyserver.Policy{
		Version: keyserver.PolicyVersion,
		Enclave: keyserver.Enclave{
			By: attest.ByEnclave, MREnclave: &report.MREnclave, MRSigner: report.MRSigner, Simulated: true,
			Flags: keyserver.Masked{Value: 4, Mask: 6}, XFRM: keyserver.Masked{Value: 3, Mask: 3},
		},
		Secrets: map[string]keyserver.Grant{keyserver.SecretProv: {Secret: "one"}},
	}
	text, err := policy.Text()
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(file("policies"), 0o755))
	require.NoError(t, os.WriteFile(file("policies/one.toml"), text, 0o644))
	port := freePort(t)
	server := exec.Command(program, append([]string{
		"release", "serve", "--listen", "127.0.0.1:0", "--status-listen", "", "--allow-simulated", "--policies",
		file("policies"), "--log", file("log"), "--tls-cert", file("tls.crt"), "--tls-key", file("tls.key"),
		"--secret-prov-listen", "127.0.0.1:" + port,
	}, store...)...)
	out, err := server.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, server.Start())
	t.Cleanup(func() { _ = server.Process.Signal(syscall.SIGTERM); _ = server.Wait() })
	lines := bufio.NewScanner(out)
	for lines.Scan() && !regexp.MustCompile(`pin=`).MatchString(lines.Text()) {
	}

	devices := file("attestation")
	require.NoError(t, os.MkdirAll(filepath.Join(devices, "keys"), 0o700))
	for _, name := range []string{"user_report_data", "quote"} {
		require.NoError(t, syscall.Mkfifo(filepath.Join(devices, name), 0o600))
	}
	require.NoError(t, os.WriteFile(filepath.Join(devices, "keys/app"), nil, 0o600))
	client := func(report quote.Report, more ...string) (string, error) {
		ctx, end := context.WithTimeout(context.Background(), time.Minute)
		defer end()
		go func() {
			for range 2 { // a quote for each form of the certificate
				if err := fixture.Attest(devices, report); err != nil {
					t.Error(err)
				}
			}
		}()
		cmd := exec.CommandContext(ctx, "unshare", "-m", "sh", "-c", `mkdir -p /dev/attestation
mount --bind "$0" /dev/attestation
exec env LD_PRELOAD="$1" sh -c 'echo "got=$SECRET_PROVISION_SECRET_STRING"'`, devices, library)
		cmd.Env = append(os.Environ(), append([]string{
			"SECRET_PROVISION_CONSTRUCTOR=1", "SECRET_PROVISION_SERVERS=localhost:" + port,
			"SECRET_PROVISION_CA_CHAIN_PATH=" + file("tls.crt"),
		}, more...)...)
		b, err := cmd.CombinedOutput()
		return string(b), err
	}
	said, err := client(report)
	require.NoError(t, err, said)
	assert.Contains(t, said, "got="+secretKey+"\n")
	keep(secretKey)
	said, err = client(report, "SECRET_PROVISION_SET_KEY=app")
	require.NoError(t, err, said)
	assert.Equal(t, secretKey, hostFile(t, filepath.Join(devices, "keys/app")))
	report.MREnclave = sgx.Measurement{3}
	said, _ = client(report)
	assert.NotContains(t, said, secretKey)
	log := command(t, program, "release", "log", file("log"))
	assert.Regexp(t, `(?s)released +one: secret-prov.*released +one: secret-prov.*refused +.*another MRENCLAVE`, log)
}
