// Package page draws a confidential image as one HTML page: identity, memory, files. The page needs no network and, but
// for searching, no scripts.
package page

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/dustin/go-humanize"

	"github.com/cconvert/cconvert/pkg/inspect"
)

//go:embed page.html
var text string

// page is read when it is wanted: most runs of the program do not draw it.
var page = sync.OnceValue(func() *template.Template {
	return template.Must(template.New("page").Funcs(template.FuncMap{
		"bytes": func(n int64) string { return humanize.IBytes(uint64(max(n, 0))) },
		"size":  humanize.IBytes,

		"notice": func() string { return inspect.SimulatedNotice },
		"hex":    func(n uint64) string { return fmt.Sprintf("%#x", n) },
		"path":   func(uri string) string { return strings.TrimPrefix(uri, "file:") },
		"comma":  func(n int) string { return humanize.Comma(int64(n)) },
	}).Parse(text))
})

// Sizes of the drawings, in pixels.
const (
	mapWidth, mapHeight   = 260.0, 520.0
	treeWidth, treeHeight = 1000.0, 420.0
	zoomGap               = 120.0
)

// box is a rectangle of a drawing.
type box struct {
	X, Y, W, H float64
	Label      string
	Title      string
	Class      string
}

type view struct {
	*inspect.Converted
	Env                  []variable
	Memory, Zoom         []box
	ZoomFrom, ZoomTo     float64 // in Memory, of what Zoom enlarges
	ZoomX                float64
	MapW, MapH, MapsW    float64
	Tree                 []box
	TreeW, TreeH         float64
	Layers               []layer
	TrustedBytes         int64
	MeasuredSize, Others uint64
}

type variable struct{ Name, Value string }

type layer struct {
	Number int
	Digest string
	Files  int
	Bytes  int64
	Class  string
}

// Write draws an image of which all layers were read.
func Write(w io.Writer, c *inspect.Converted) error {
	v := view{
		Converted: c, MapW: mapWidth, MapH: mapHeight, MapsW: 2*mapWidth + zoomGap, TreeW: treeWidth, TreeH: treeHeight,
		ZoomX: mapWidth + zoomGap,
	}
	for _, name := range slices.Sorted(maps.Keys(c.Program.Env)) {
		value, fixed := c.Program.Env[name].(string)
		if !fixed {
			value = "(chosen by the host)"
		}
		v.Env = append(v.Env, variable{name, value})
	}
	v.drawMemory()
	v.drawTree()
	return page().Execute(w, v)
}

// drawMemory draws the enclave's addresses to scale, from the top, and its measured part enlarged beside it.
func (v *view) drawMemory() {
	total := float64(v.Enclave.EnclaveSize)
	if total == 0 || len(v.Areas) == 0 {
		return
	}
	lowest := v.Enclave.EnclaveSize
	for _, a := range v.Areas {
		if a.Measured {
			v.MeasuredSize += a.Size
			lowest = min(lowest, a.Offset)
		} else {
			v.Others += a.Size
		}
	}
	span := total - float64(lowest)
	for _, a := range v.Areas {
		top := total - float64(a.Offset+a.Size)
		b := box{W: mapWidth, Y: top / total * mapHeight, H: float64(a.Size) / total * mapHeight, Class: "heap"}
		b.Title = fmt.Sprintf("%s: %s at %#x, %s", a.Name, humanize.IBytes(a.Size), a.Offset, a.Flags)
		if a.Measured {
			b.Class = "measured"
			z := box{
				X: v.ZoomX, W: mapWidth, Y: top / span * mapHeight, H: float64(a.Size) / span * mapHeight,
				Class: "area-" + a.Name, Title: b.Title,
			}
			if z.H > 11 {
				z.Label = fmt.Sprintf("%s, %s", a.Name, humanize.IBytes(a.Size))
			}
			v.Zoom = append(v.Zoom, z)
		} else {
			b.Label = fmt.Sprintf("%s, %s, not measured", a.Name, humanize.IBytes(a.Size))
		}
		v.Memory = append(v.Memory, b)
	}
	v.ZoomTo = span / total * mapHeight
}

// colours is how many layers have colours of their own.
const colours = 8

// drawTree draws the bytes of the trusted files, by directory and layer.
func (v *view) drawTree() {
	type key struct {
		dir   string
		layer int
	}
	sizes := map[key]int64{}
	v.Layers = make([]layer, len(v.LayerDigests))
	for i, d := range v.LayerDigests {
		v.Layers[i] = layer{Number: i + 1, Digest: d, Class: fmt.Sprintf("layer-%d", i%colours)}
	}
	for _, f := range v.Trusted {
		if f.Layer == 0 || f.Layer > len(v.Layers) {
			continue
		}
		l := &v.Layers[f.Layer-1]
		l.Files++
		l.Bytes += f.Size
		v.TrustedBytes += f.Size
		sizes[key{topDir(strings.TrimPrefix(f.URI, "file:")), f.Layer}] += f.Size
	}
	keys := slices.SortedFunc(maps.Keys(sizes), func(a, b key) int {
		if d := sizes[b] - sizes[a]; d != 0 {
			return int(min(max(d, -1), 1))
		}
		return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
	})
	var values []float64
	for _, k := range keys {
		values = append(values, float64(max(sizes[k], 1)))
	}
	for i, r := range treemap(values, 0, 0, treeWidth, treeHeight) {
		k := keys[i]
		r.Title = fmt.Sprintf("%s: %s in layer %d", k.dir, humanize.IBytes(uint64(sizes[k])), k.layer)
		r.Class = v.Layers[k.layer-1].Class
		if r.W > 60 && r.H > 16 {
			r.Label = k.dir
		}
		v.Tree = append(v.Tree, r)
	}
}

// topDir is the part of a path by which files are put together: three directories at the most.
func topDir(p string) string {
	parts := strings.Split(strings.TrimPrefix(p, "/"), "/")
	return "/" + strings.Join(parts[:min(3, max(len(parts)-1, 1))], "/")
}

// treemap lays rectangles of the given sizes, largest first, into another one, as square as it can ("Squarified
// Treemaps", Bruls, Huizing, van Wijk).
func treemap(sizes []float64, x, y, w, h float64) []box {
	total := 0.0
	for _, s := range sizes {
		total += s
	}
	out := make([]box, 0, len(sizes))
	for len(sizes) > 0 && w > 0 && h > 0 {
		scale := w * h / total
		side := min(w, h)
		n, sum, worst := 0, 0.0, 0.0
		for n < len(sizes) {
			next := sum + sizes[n]
			ratio := rowRatio(sizes[0], sizes[n], next, side, scale)
			if n > 0 && ratio > worst {
				break
			}
			n, sum, worst = n+1, next, ratio
		}
		thick := sum * scale / side
		at := 0.0
		for _, s := range sizes[:n] {
			length := s * scale / thick
			if w >= h {
				out = append(out, box{X: x, Y: y + at, W: thick, H: length})
			} else {
				out = append(out, box{X: x + at, Y: y, W: length, H: thick})
			}
			at += length
		}
		if w >= h {
			x, w = x+thick, w-thick
		} else {
			y, h = y+thick, h-thick
		}
		sizes, total = sizes[n:], total-sum
	}
	for len(out) < cap(out) { // what is too small to be drawn
		out = append(out, box{X: x, Y: y})
	}
	return out
}

// rowRatio is the worst ratio of sides in a row of so much, whose largest and smallest are given.
func rowRatio(largest, smallest, sum, side, scale float64) float64 {
	thick := sum * scale / side
	a, b := largest*scale/thick, smallest*scale/thick
	return max(thick/a, a/thick, thick/b, b/thick)
}
