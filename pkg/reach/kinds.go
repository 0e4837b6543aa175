package reach

import "github.com/cconvert/cconvert/pkg/rootfs"

// kind is what a file's path alone says of it, by the rules of templates/trust.toml.
type kind uint8

const (
	ordinary kind = iota
	secret
	certificate
	timezone
	unread   // no program reads it
	needless // nor is it meant where a profile names a whole directory
)

// Kinds are those of a tree's regular files.
type Kinds struct {
	list  []kind // by the number of their nodes
	known chan struct{}
}

// Classify begins to find out the kinds of a tree's files. It takes as long as reading the packages, and needs
// nothing of them: it is done beside.
func Classify(tree *rootfs.Tree) *Kinds {
	k := &Kinds{list: make([]kind, tree.Len()), known: make(chan struct{})}
	go func() {
		defer close(k.known)
		never, secrets, certificates, zones, others := neverRead.Matcher(), secrets.Matcher(), certificates.Matcher(),
			timezones.Matcher(), otherZones.Matcher()
		var unreads unreadFiles
		_ = tree.Walk(func(n *rootfs.Node) error {
			if n.Type != rootfs.Regular {
				return nil
			}
			is := &k.list[n.Number()]
			switch {
			case secrets.Match(n.Path):
				*is = secret
			case certificates.Match(n.Path):
				*is = certificate
			case unreads.match(n):
				*is = needless
			case zones.Match(n.Path) && !others.Match(n.Path):
				*is = timezone
			case never.Match(n.Path), zones.Match(n.Path):
				*is = unread
			}
			return nil
		})
		if !unreads.checked {
			for _, n := range unreads.declarations {
				k.list[n.Number()] = needless
			}
		}
	}()
	return k
}

// all waits for the kinds.
func (k *Kinds) all() []kind {
	<-k.known
	return k.list
}
