package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/cconvert/cconvert/pkg/libos/gramine"
	"github.com/cconvert/cconvert/pkg/libos/gramine/enclave"
	"github.com/cconvert/cconvert/pkg/sgx"
)

// convert runs cconvert. Evidence, which comes on top of what other tools do, is left out unless it is asked for.
func (b *bench) convert(ctx context.Context, source, to string, flags ...string) (finished, error) {
	return command(ctx, b.program, append([]string{
		"convert", source, "--to", to, "--runtime", "sim=" + b.runtime, "--key", b.key, "--attest=false",
	}, flags...)...)
}

// cold forgets what is known of layers, but not the runtime.
func (b *bench) cold() error {
	return os.RemoveAll(filepath.Join(os.Getenv("XDG_CACHE_HOME"), "cconvert", "index"))
}

// conversions times converting with nothing known of the layer, beside what inflating the layer takes.
func (b *bench) conversions(ctx context.Context) error {
	peak := int64(0)
	cold := func(inflate string) step {
		return step{"cold convert, " + inflate, func() (time.Duration, error) {
			if err := b.cold(); err != nil {
				return 0, err
			}
			f, err := b.convert(ctx, b.image, b.registry.host+"/mixed:out", "--inflate", inflate)
			peak = max(peak, f.peak)
			return f.took, err
		}}
	}
	took, err := b.medians(
		step{"igzip -dc \\| openssl sha256", timeOf(ctx, nil, "sh", "-c", "igzip -dc <"+b.layer+" | openssl sha256")},
		cold("igzip"),
		step{"klauspost's gzip in this process", b.inflate}, cold("go"))
	if err != nil {
		return err
	}
	piped, igzip, klauspost, inGo := took[0], took[1], took[2], took[3]
	verified, err := b.median("verify",
		timeOf(ctx, nil, b.program, "verify", b.registry.host+"/mixed:out", "--any-signer", "--allow-simulated"))
	if err != nil {
		return err
	}
	b.goal("verify ÷ cold convert with igzip", verified/igzip, 1.3, "")
	b.goal("cold convert with igzip ÷ igzip -dc \\| openssl sha256", igzip/piped, 1.25, "")
	b.goal("cold convert in Go ÷ klauspost's gzip alone", inGo/klauspost, 1.2, "")
	b.goal("cold convert with igzip ÷ crane export", igzip/b.seconds(craneExport), 0.45, "")
	b.goal("cold convert with igzip ÷ umoci unpack", igzip/b.seconds(umociUnpack), 0.25, "")
	b.goal("peak memory, the mixed image", float64(peak)/1e6, 200, " MB")
	return nil
}

// warm times converting with the layer known, beside a client that sends the same requests and nothing
// else.
func (b *bench) warm(ctx context.Context) error {
	p, err := startProxy(b.registry.host)
	if err != nil {
		return err
	}
	defer p.stop()
	via := func(tag string) string { return p.host + "/" + tag }
	// Tags of this run's own: a tag does not fall back to a lower version.
	recorded, target := fmt.Sprint("mixed:recorded-", time.Now().Unix()), fmt.Sprint("mixed:warm-", time.Now().Unix())
	// The first result is another image, so that the recorded one uploads what a new result needs.
	if _, err := b.convert(ctx, via("mixed:1"), via(recorded), "--isv-svn", "1"); err != nil {
		return err
	}
	p.record()
	if _, err := b.convert(ctx, via("mixed:1"), via(recorded), "--isv-svn", "2"); err != nil {
		return err
	}
	requests := p.recorded()
	b.note("a warm conversion: %d requests, %s down, %s up, %d of %d layer bytes fetched", len(requests),
		humanize.Bytes(uint64(p.down())), humanize.Bytes(uint64(p.up())), p.layerBytes(), fileSize(b.layer))
	b.goal("layer bytes fetched when the layer is known", float64(p.layerBytes()), 0, "")

	script := filepath.Join(b.dir, "requests.json")
	if err := p.save(script, b.registry.host); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	svn := 1
	if _, err := b.convert(ctx, b.image, b.registry.host+"/"+target, "--isv-svn", "1"); err != nil {
		return err
	}
	warm := func(flags ...string) func() (time.Duration, error) {
		return func() (time.Duration, error) {
			svn++ // else the registry had it all
			f, err := b.convert(ctx, b.image, b.registry.host+"/"+target,
				append(flags, "--isv-prod-id", "7", "--isv-svn", fmt.Sprint(svn))...)
			return f.took, err
		}
	}
	took, err := b.medians(step{"the same requests by a bare client", timeOf(ctx, nil, self, "-bare", script)},
		step{"warm convert", warm()})
	if err != nil {
		return err
	}
	b.goal("warm convert ÷ a bare client with the same requests", took[1]/took[0], 2, "")
	_, err = b.median("warm convert with evidence", warm("--attest"))
	return err
}

// second counts what is pushed for a second image on the same base and runtime.
func (b *bench) second(ctx context.Context) error {
	p, err := startProxy(b.registry.host)
	if err != nil {
		return err
	}
	defer p.stop()
	p.record()
	f, err := b.convert(ctx, p.host+"/mixed:1", p.host+"/mixed:second", "--env",
		fmt.Sprint("SECOND=", time.Now().UnixNano()))
	if err != nil {
		return err
	}
	blobs := p.uploads()
	b.note("a second image on the same base and runtime uploads %d blobs (enclave layer and configuration) and "+
		"manifests, %s: %s",
		len(blobs), humanize.Bytes(uint64(p.up())), f.out)
	b.goal("blobs pushed for a second image on the same base and runtime", float64(len(blobs)), 2, "")
	return nil
}

// measurements times the measurement in this process, of an enclave as a conversion lays it out.
func (b *bench) measurements(ctx context.Context) error {
	pal, err := os.ReadFile("testdata/vectors/pal/pal-foursegments.so")
	if err != nil {
		return err
	}
	for _, size := range []uint64{256 << 20, 4 << 30, 64 << 30} {
		text := fmt.Appendf(nil, "sgx.enclave_size = %q\nsgx.max_threads = 8\n", enclave.FormatSize(size))
		e, err := gramine.NewEnclave(pal, text)
		if err != nil {
			return err
		}
		hashed := hashedBytes(e.Layout)
		runtime.GC()
		name := humanize.IBytes(size)
		took, err := b.median("measure an enclave of "+name, func() (time.Duration, error) {
			begin := time.Now()
			_, err := sgx.Measure(ctx, e.Layout)
			return time.Since(begin), err
		})
		if err != nil {
			return err
		}
		plain, err := b.median(fmt.Sprintf("crypto/sha256 over its %s", humanize.Bytes(hashed)),
			func() (time.Duration, error) {
				return plainHash(hashed), nil
			})
		if err != nil {
			return err
		}
		if size >= 4<<30 { // less is done before there is anything to compare
			b.goal("measure "+name+" ÷ crypto/sha256 over as many bytes", took/plain, 1.25, "")
		}
	}
	return nil
}

// hashedBytes is how long the records are that make a measurement (SDM 3D, EADD and EEXTEND).
func hashedBytes(l sgx.Layout) uint64 {
	n := uint64(64)
	for _, a := range l.Areas {
		record := uint64(64)
		if !a.Unmeasured {
			record += 16 * (64 + 256)
		}
		n += a.Size / sgx.PageSize * record
	}
	return n
}

func fileSize(file string) int64 {
	info, err := os.Stat(file)
	if err != nil {
		return -1
	}
	return info.Size()
}
