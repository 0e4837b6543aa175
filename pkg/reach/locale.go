package reach

import (
	"slices"
	"strings"
)

// locale reports whether a file belongs to a locale that the program is told to use, or to the one that
// programs take if they are told nothing.
func (f *Finder) locale(p string) bool {
	dir, rest, ok := strings.Cut(strings.TrimPrefix(p, "/usr/"), "/locale/")
	if !ok || dir != "lib" && dir != "share" && dir != "lib64" {
		return false
	}
	name, _, _ := strings.Cut(rest, "/")
	if dir != "share" && (name == "locale-archive" || normalised(name) == "C.utf8") {
		return true
	}
	return slices.ContainsFunc(f.start.Locales, func(l string) bool {
		language, _, _ := strings.Cut(l, "_")
		territory, _, _ := strings.Cut(l, ".")
		return normalised(name) == normalised(l) || name == language || name == territory
	})
}

// normalised is a locale's name with its character set as libraries spell directories: utf8 for UTF-8.
func normalised(l string) string {
	name, charset, ok := strings.Cut(l, ".")
	if !ok {
		return l
	}
	return name + "." + strings.ReplaceAll(strings.ToLower(charset), "-", "")
}
