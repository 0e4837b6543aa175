package main

import (
	"github.com/spf13/pflag"

	"github.com/cconvert/cconvert/pkg/convert"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// layerFlags are about how layers are read.
type layerFlags struct {
	cache   cacheFlags
	inflate string
}

func (l *layerFlags) add(f *pflag.FlagSet) {
	l.cache.add(f)
	f.StringVar(&l.inflate, "inflate", "auto", "what inflates layers: go (this program), igzip, pigz, or auto: igzip where it is installed")
}

func (l *layerFlags) choose(o *convert.Options) (err error) {
	if o.Inflate, err = rootfs.FindInflater(l.inflate); err != nil {
		return usagef("--inflate %s: %w", l.inflate, err)
	}
	return nil
}
