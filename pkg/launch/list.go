package launch

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// maxListLine is how long a line of a list can be.
const maxListLine = 1 << 20

// call is a line of strace: an optional process, the call's name and its arguments.
var call = regexp.MustCompile(`^(?:\[pid +\d+\] |\d+ +)?(?:[\d:.]+ )?(\w+)\((.*)`)

// returned is the end of a call's line, which strace pads so that short ones stand below each other.
var returned = regexp.MustCompile(`.*\)\s+= (-?\w+)`)

// quoted is a string argument, and what it is relative to, if the call says so.
var quoted = regexp.MustCompile(`(?:(AT_FDCWD|\d+)(?:<([^>]*)>)?, )?"((?:[^"\\]|\\.)*)"`)

// ParseList reads paths, one in a line, or what "strace -f -e trace=%file" prints: the paths of all calls
// that did not fail. A path relative to a directory that the recording does not name is tried below every
// directory that it speaks of.
func ParseList(r io.Reader) ([]string, error) {
	t := trace{dirs: []string{"/"}}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxListLine)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		if m := call.FindStringSubmatch(line); m != nil && !strings.HasPrefix(line, "/") {
			t.call(m[1], m[2])
		} else if path.IsAbs(line) {
			t.paths = append(t.paths, path.Clean(line))
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading the list: %w", err)
	}
	if len(t.paths) == 0 {
		return nil, fmt.Errorf("reading the list: %w", errEmptyList)
	}
	slices.Sort(t.paths)
	return slices.Compact(t.paths), nil
}

var errEmptyList = fmt.Errorf("it names no absolute path")

// trace is a recording of system calls as it is read.
type trace struct {
	paths []string
	dirs  []string // working directories, and directories that were opened
}

func (t *trace) call(name, rest string) {
	if m := returned.FindStringSubmatch(rest); m != nil && m[1] == "-1" {
		return
	}
	for _, m := range quoted.FindAllStringSubmatch(rest, -1) {
		p, err := strconv.Unquote(`"` + octal.ReplaceAllStringFunc(m[3], threeDigits) + `"`)
		if err != nil || p == "" || strings.ContainsRune(p, 0) {
			continue
		}
		dirs := t.dirs
		switch {
		case path.IsAbs(p):
			dirs = []string{"/"}
		case m[2] != "":
			dirs = []string{m[2]}
		}
		for _, dir := range dirs {
			t.paths = append(t.paths, path.Join(dir, p))
		}
		if path.IsAbs(p) && (name == "chdir" || strings.Contains(rest, "O_DIRECTORY")) && !slices.Contains(t.dirs, p) &&
			len(t.dirs) < 64 {
			t.dirs = append(t.dirs, path.Clean(p))
		}
		if name == "execve" || name == "execveat" {
			return // what follows are arguments
		}
	}
}

// octal are strace's escapes of bytes, which have as many digits as they need; Go's have three.
var octal = regexp.MustCompile(`\\[0-7]{1,3}`)

func threeDigits(s string) string {
	n, _ := strconv.ParseUint(s[1:], 8, 16)
	return fmt.Sprintf(`\%03o`, n&0xff)
}
