package main

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
)

// The program is a plug-in of other programs' command lines by the name of a link to it: "kubectl cconvert" starts
// kubectl-cconvert, and "docker cconvert" starts docker-cconvert with its own name as the first argument, after it has
// asked for the metadata (github.com/docker/cli, cli-plugins/metadata).

// dockerMetadata is the command by which Docker asks what a plug-in is.
const dockerMetadata = "docker-cli-plugin-metadata"

// asPlugin returns the arguments of a plug-in as those of the program, and what is to be printed instead of carrying
// them out, if that is so.
func asPlugin(args []string) (own []string, print string) {
	if filepath.Base(args[0]) != "docker-cconvert" {
		return args[1:], ""
	}
	own = args[1:]
	if slices.Equal(own, []string{dockerMetadata}) {
		b, err := json.Marshal(map[string]string{
			"SchemaVersion": "0.1.0", "Vendor": "cconvert", "Version": strings.TrimPrefix(version, "v"),
			"ShortDescription": "Turn container images into confidential ones, for Intel SGX",
		})
		if err != nil {
			panic(err) // text alone
		}
		return nil, string(b)
	}
	if i := slices.Index(own, "cconvert"); i >= 0 { // after Docker's own flags, which are no business of ours
		own = own[i+1:]
	}
	return own, ""
}
