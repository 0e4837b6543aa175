package convert

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/cconvert/cconvert/pkg/libos/gramine/sim"
	"github.com/cconvert/cconvert/pkg/recipe"
)

// Recipes of images of others: what is understood is understood in full.
func FuzzRecipe(f *testing.F) {
	f.Add(`{"epoch":2,"source":"sha256:00","platform":"linux/amd64",
		"options":{"enclave_size":1,"trust":"auto","libc":"auto","env":["A=1"],"encrypt_mount":["/d=k"]},
		"date":"2026-02-28","replaced":{"Cmd":["x"]},"diff_ids":["sha256:00"]}`,
		`{"config":{"Env":["A=1"],"Entrypoint":["/x"]},"rootfs":{"diff_ids":["sha256:00"]},"history":[{},{},{}]}`)
	f.Fuzz(func(t *testing.T, text, config string) {
		var r recipe.Recipe
		if json.Unmarshal([]byte(text), &r) != nil {
			return
		}
		_ = r.Keep()
		_, _ = r.ConfigBefore([]byte(config), 2)
		o, err := optionsOf(r, sim.Backend{})
		if err != nil || r.Options.Profile != "" {
			return
		}
		again := o.Recorded()
		second, enclave, err := again.Decisions()
		if err != nil {
			t.Fatal(err)
		}
		if got := (Options{Launch: second, Enclave: enclave, Date: o.Date}).Recorded(); !reflect.DeepEqual(got, again) {
			t.Fatalf("%+v is not %+v", got, again)
		}
	})
}
