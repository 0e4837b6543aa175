package main

import (
	"io"
	"sync"

	"github.com/sirupsen/logrus"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// progress shows how a conversion gets on: bars on a terminal, lines elsewhere.
type progress struct {
	bars  *mpb.Progress // nil where there is no terminal
	once  sync.Once
	mu    sync.Mutex
	stage *mpb.Bar
}

func newProgress(w io.Writer) *progress {
	if showsProgress(w) {
		return &progress{bars: mpb.New(mpb.WithOutput(w), mpb.WithWidth(40))}
	}
	return &progress{}
}

func (p *progress) Stage(name string) {
	if p.bars == nil {
		logrus.Info(name)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stage != nil {
		p.stage.Abort(true)
	}
	p.stage = p.bars.New(0, mpb.SpinnerStyle(), mpb.BarWidth(1),
		mpb.AppendDecorators(decor.Name(name), decor.Elapsed(decor.ET_STYLE_GO, decor.WC{W: 6})))
}

func (p *progress) Layer(digest string, size int64, r io.ReadCloser) io.ReadCloser {
	if p.bars == nil {
		logrus.Debugf("reading the layer %s", digest)
		return r
	}
	bar := p.bars.AddBar(max(size, 0),
		mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Name(digest[:min(len(digest), 19)]+" ")),
		mpb.AppendDecorators(decor.Counters(decor.SizeB1024(0), "% .1f / % .1f")))
	counted, err := bar.ProxyReader(r)
	if err != nil { // the bars are gone already
		return r
	}
	return &barReader{counted, bar}
}

// barReader takes the bar away when the layer is no longer read, whatever the reason.
type barReader struct {
	io.ReadCloser
	bar *mpb.Bar
}

func (r *barReader) Close() error {
	r.bar.Abort(true)
	return r.ReadCloser.Close()
}

// finish leaves the terminal clean. It can be called more than once.
func (p *progress) finish() {
	p.once.Do(func() {
		if p.bars != nil {
			p.bars.Shutdown()
		}
	})
}
