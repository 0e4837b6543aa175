package manifest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
	"github.com/pelletier/go-toml/v2/unstable"
)

// The keys that Gramine knows and their types, as its own checker has them (v1.9,
// python/graminelibos/manifest_check.py). If the checker is lenient, so is this: an integer may be a
// boolean, a trusted file may lack its URI.
var schema = table{
	"fs": required(table{
		"mounts":         required(arrayOf(mountSchema)),
		"root":           optional(rootSchema),
		"start_dir":      optional(str),
		"insecure__keys": optional(mapOf(str)),
	}),
	"libos": required(table{
		"entrypoint":             required(str),
		"check_invalid_pointers": optional(boolean),
	}),
	"loader": required(table{
		"entrypoint":    required(table{"uri": required(str), "sha256": optional(str)}),
		"argv":          optional(arrayOf(str)),
		"argv_src_file": optional(str),
		"env": optional(mapOf(oneOf{
			str, table{"value": optional(str)}, table{"passthrough": optional(yes{})},
		})),
		"env_src_file":               optional(str),
		"gid":                        optional(integer),
		"insecure__use_cmdline_argv": optional(boolean),
		"insecure__use_host_env":     optional(boolean),
		"insecure__disable_aslr":     optional(boolean),
		"log_file":                   optional(str),
		"log_level":                  optional(enum{"none", "error", "warning", "debug", "trace", "all"}),
		"uid":                        optional(integer),
	}),
	"sgx": optional(table{
		"allowed_files": optional(arrayOf(str)),
		"cpu_features": optional(table{
			"avx":    optional(enum{"unspecified", "disabled", "required"}),
			"avx512": optional(enum{"unspecified", "disabled", "required"}),
			"amx":    optional(enum{"unspecified", "disabled", "required"}),
			"mpx":    optional(enum{"disabled", "required"}),
			"pkru":   optional(enum{"disabled", "required"}),
		}),
		"debug":             optional(boolean),
		"edmm_enable":       optional(boolean),
		"enable_stats":      optional(boolean),
		"enclave_size":      optional(str),
		"file_check_policy": optional(enum{"strict", "allow_all_but_log"}),
		"insecure__allow_memfaults_without_exinfo": optional(boolean),
		"insecure__rpc_thread_num":                 optional(integer),
		"isvprodid":                                optional(integer),
		"isvsvn":                                   optional(integer),
		"max_threads":                              optional(integer),
		"preheat_enclave":                          optional(boolean),
		"profile": optional(table{
			"enable":     optional(enum{"none", "main", "all"}),
			"mode":       optional(enum{"aex", "ocall_inner", "ocall_outer"}),
			"with_stack": optional(boolean),
			"frequency":  optional(integer),
		}),
		"remote_attestation": optional(enum{"none", "dcap"}),
		"seal_key": optional(table{
			"flags_mask": optional(str), "xfrm_mask": optional(str), "misc_mask": optional(str),
		}),
		"trusted_files": optional(arrayOf(oneOf{str, table{"uri": optional(str), "sha256": optional(str)}})),
		"use_exinfo":    optional(boolean),
		"vtune_profile": optional(boolean),
	}),
	"sys": optional(table{
		"allowed_ioctls": optional(arrayOf(table{
			"request_code": required(integer), "struct": optional(str),
		})),
		"brk":                                    optional(table{"max_size": optional(str)}),
		"disallow_subprocesses":                  optional(boolean),
		"enable_extra_runtime_domain_names_conf": optional(boolean),
		"enable_sigterm_injection":               optional(boolean),
		"experimental__enable_flock":             optional(boolean),
		"insecure__allow_eventfd":                optional(boolean),
		"ioctl_structs":                          optional(mapOf(anything{})),
		"debug__mock_syscalls": optional(arrayOf(table{
			"name": required(str), "return": optional(integer),
		})),
		"stack": optional(table{"size": optional(str)}),
		"fds":   optional(table{"limit": optional(integer)}),
	}),
}

// filesystem lists what fs.root and fs.mounts may be; a mount has a path as well.
func filesystem(more table) oneOf {
	var types oneOf
	for _, t := range []table{
		{"type": optional(enum{"chroot"}), "uri": required(str)},
		{
			"type": required(enum{"encrypted"}), "uri": required(str), "key_name": optional(str),
			"enable_recovery": optional(boolean),
		},
		{"type": required(enum{"tmpfs"}), "uri": optional(str)},
		{"type": required(enum{"untrusted_shm"}), "uri": required(str)},
	} {
		maps.Copy(t, more)
		types = append(types, t)
	}
	return types
}

var (
	rootSchema  = filesystem(nil)
	mountSchema = filesystem(table{"path": required(str)})
)

// rule is what a value must be.
type rule interface {
	// name says what is expected, for messages.
	name() string
}

type (
	scalar   string
	enum     []string
	yes      struct{} // true, or a number equal to it
	anything struct{}
	array    struct{ element rule }
	dict     struct{ value rule }
	oneOf    []rule
	field    struct {
		rule
		required bool
	}
	table map[string]field
)

const (
	str     scalar = "a string"
	integer scalar = "an integer"
	boolean scalar = "a boolean"
)

func required(r rule) field { return field{r, true} }
func optional(r rule) field { return field{r, false} }
func arrayOf(r rule) rule   { return array{r} }
func mapOf(r rule) rule     { return dict{r} }

func (s scalar) name() string { return string(s) }
func (e enum) name() string   { return "one of " + strings.Join(e, ", ") }
func (yes) name() string      { return "true" }
func (anything) name() string { return "anything" }
func (array) name() string    { return "an array" }
func (dict) name() string     { return "a table" }
func (table) name() string    { return "a table" }

func (o oneOf) name() string {
	var names []string
	for _, r := range o {
		names = append(names, r.name())
	}
	return strings.Join(slices.Compact(names), " or ")
}

type checker struct {
	whole    bool // required keys must be there
	problems []*KeyError
}

func (c *checker) fail(key, format string, args ...any) {
	c.problems = append(c.problems, &KeyError{Key: key, Problem: fmt.Sprintf(format, args...)})
}

// check notes every problem of a value; the key is the dotted path to it.
func (c *checker) check(key string, r rule, v any) {
	ok := true
	switch r := r.(type) {
	case field:
		c.check(key, r.rule, v)
		return
	case scalar:
		switch v.(type) {
		case string:
			ok = r == str
		case int64:
			ok = r == integer
		case bool:
			ok = r == boolean || r == integer
		default:
			ok = false
		}
	case enum:
		s, isString := v.(string)
		ok = isString && slices.Contains(r, s)
		if isString && !ok {
			c.fail(key, "%q is not allowed: it must be %s", s, r.name())
			return
		}
	case yes:
		ok = v == true || v == int64(1) || v == float64(1)
	case array:
		l, isArray := v.([]any)
		if ok = isArray; ok {
			for i, e := range l {
				// Elements of what an overlay adds must be whole.
				inner := checker{whole: true}
				inner.check(fmt.Sprintf("%s[%d]", key, i), r.element, e)
				c.problems = append(c.problems, inner.problems...)
			}
		}
	case dict:
		t, isTable := v.(Table)
		if ok = isTable; ok {
			for _, k := range slices.Sorted(maps.Keys(t)) {
				c.check(key+"."+k, r.value, t[k])
			}
		}
	case oneOf:
		c.checkAny(key, r, v)
		return
	case table:
		t, isTable := v.(Table)
		if ok = isTable; ok {
			c.checkTable(key, r, t)
		}
	}
	if !ok {
		c.fail(key, "it must be %s, not %s", r.name(), kindOf(v))
	}
}

// checkAny tries the alternatives and reports those problems of the one that fits best.
func (c *checker) checkAny(key string, alternatives oneOf, v any) {
	var best []*KeyError
	for _, r := range alternatives {
		inner := checker{whole: true}
		inner.check(key, r, v)
		if len(inner.problems) == 0 {
			return
		}
		// The fewest problems, as long as they are inside the value and not with its type.
		outside := inner.problems[0].Key == key
		if best == nil || best[0].Key == key && !outside || !outside && len(inner.problems) < len(best) {
			best = inner.problems
		}
	}
	if best[0].Key == key && !strings.Contains(best[0].Problem, "missing") {
		c.fail(key, "it must be %s, not %s", alternatives.name(), kindOf(v))
		return
	}
	c.problems = append(c.problems, best...)
}

func (c *checker) checkTable(key string, r table, t Table) {
	prefix := ""
	if key != "" {
		prefix = key + "."
	}
	for _, k := range slices.Sorted(maps.Keys(t)) {
		if f, ok := r[k]; ok {
			c.check(prefix+k, f.rule, t[k])
			continue
		}
		c.fail(prefix+k, "this key does not exist%s", nearest(k, r))
	}
	for _, k := range slices.Sorted(maps.Keys(r)) {
		if _, ok := t[k]; !ok && r[k].required && c.whole {
			c.fail(prefix+k, "this key is missing")
		}
	}
}

// nearest suggests the key that was probably meant.
func nearest(k string, r table) string {
	best, distance := "", 1<<30
	for _, known := range slices.Sorted(maps.Keys(r)) {
		if d := levenshtein.ComputeDistance(k, known); d < distance {
			best, distance = known, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; the nearest is %q", best)
}

func kindOf(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case int64:
		return "an integer"
	case bool:
		return "a boolean"
	case float64:
		return "a float"
	case []any:
		return "an array"
	case Table:
		return "a table"
	}
	return "a date or time"
}

// keyLines finds the line of every key, by its dotted path with indices of arrays.
func keyLines(text []byte) map[string]int {
	lines := map[string]int{}
	var p unstable.Parser
	p.Reset(text)
	tables := map[string]int{} // how many tables an array of tables has
	prefix := ""
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table:
			prefix = notePath(&p, lines, "", e.Key(), tables) + "."
		case unstable.ArrayTable:
			path := notePath(&p, lines, "", e.Key(), nil)
			prefix = fmt.Sprintf("%s[%d].", path, tables[path])
			lines[strings.TrimSuffix(prefix, ".")] = lines[path]
			tables[path]++
		case unstable.KeyValue:
			noteValue(&p, lines, prefix, e)
		}
	}
	return lines
}

func notePath(
	p *unstable.Parser, lines map[string]int, prefix string, it unstable.Iterator, tables map[string]int,
) string {
	path := strings.TrimSuffix(prefix, ".")
	for it.Next() {
		n := it.Node()
		if path != "" {
			path += "."
		}
		path += string(n.Data)
		if _, ok := lines[path]; !ok {
			lines[path] = p.Shape(n.Raw).Start.Line
		}
		if count := tables[path]; count > 0 {
			path = fmt.Sprintf("%s[%d]", path, count-1)
		}
	}
	return path
}

func noteValue(p *unstable.Parser, lines map[string]int, prefix string, kv *unstable.Node) {
	path := notePath(p, lines, prefix, kv.Key(), nil)
	noteInside(p, lines, path, kv.Value())
}

func noteInside(p *unstable.Parser, lines map[string]int, path string, v *unstable.Node) {
	switch v.Kind {
	case unstable.InlineTable:
		for it := v.Children(); it.Next(); {
			noteValue(p, lines, path+".", it.Node())
		}
	case unstable.Array:
		i := 0
		for it := v.Children(); it.Next(); i++ {
			at := fmt.Sprintf("%s[%d]", path, i)
			n := it.Node()
			lines[at] = lines[path]
			if n.Raw.Length > 0 {
				lines[at] = p.Shape(n.Raw).Start.Line
			}
			noteInside(p, lines, at, n)
		}
	}
}
