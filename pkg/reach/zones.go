package reach

import (
	"path"
	"strings"

	"github.com/cconvert/cconvert/pkg/rootfs"
)

// zoneinfo is where C libraries look for time zones by their names (tzset(3)).
const zoneinfo = "/usr/share/zoneinfo"

// namedZones are the time zones that the program can be expected to read: that of /etc/localtime, UTC, the one in TZ,
// and those that arguments and scripts name. There are over a thousand, which most programs never open: that they have
// a choice is for profiles to say.
func (f *Finder) namedZones() map[*rootfs.Node]bool {
	zones := map[*rootfs.Node]bool{}
	add := func(p string) {
		if n, _, err := f.tree.Resolve(p); err == nil && n.Type == rootfs.Regular && timezones.Match(n.Path) {
			zones[n] = true
		}
	}
	add("/etc/localtime")
	for _, name := range []string{"UTC", "Etc/UTC", "GMT"} {
		add(path.Join(zoneinfo, name))
	}
	for _, tz := range f.start.Zones {
		tz = strings.TrimPrefix(tz, ":") // as in TZ=:Europe/Berlin
		if path.IsAbs(tz) {
			add(tz)
		}
		add(path.Join(zoneinfo, tz))
	}
	for w := range f.tried {
		if strings.Contains(w, "/") && !path.IsAbs(w) {
			add(path.Join(zoneinfo, w))
		}
	}
	return zones
}
