package recipe

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Differences tells of all options in which a recipe differs from another one, which has none of its own.
func Differences(was, plain *Recipe) (list []string) {
	keys := func(o Options) (m map[string]json.RawMessage) {
		b, err := json.Marshal(o)
		if err == nil {
			err = json.Unmarshal(b, &m)
		}
		if err != nil {
			panic(err) // strings, numbers and lists
		}
		return m
	}
	without := keys(plain.Options)
	with := keys(was.Options)
	for _, key := range slices.Sorted(maps.Keys(with)) {
		if string(with[key]) != string(without[key]) {
			list = append(list, fmt.Sprintf("option %s: %s", key, with[key]))
		}
	}
	for line := range strings.Lines(was.Overlay) {
		if line = strings.TrimSpace(line); line != "" && was.Overlay != plain.Overlay {
			list = append(list, "option manifest: "+line)
		}
	}
	return list
}
