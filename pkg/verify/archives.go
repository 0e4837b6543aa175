package verify

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/cconvert/cconvert/pkg/image"
	"github.com/cconvert/cconvert/pkg/rootfs"
)

// checkArchives compares the archive of each layer with the diff ID in the configuration, which it returns, and with
// the table of contents that a snapshotter may take the files from instead.
func checkArchives(
	ctx context.Context, img *image.Image, indexes []*rootfs.Index, limits rootfs.Limits,
) (diffIDs, problems []string, err error) {
	if diffIDs, err = img.DiffIDs(); err != nil {
		return nil, []string{err.Error()}, nil
	}
	for i, index := range indexes {
		if i >= len(diffIDs) || diffIDs[i] != index.DiffID {
			problems = append(problems, fmt.Sprintf("layer %d, %s: its archive is %s, which the configuration does "+
				"not say", i+1, index.Digest, index.DiffID))
		}
	}
	checked := map[string]bool{}
	for i, l := range img.Layers {
		annotations, key := image.Lazy(l.Annotations), fmt.Sprint(l.Digest, l.Annotations)
		if len(annotations) == 0 || checked[key] {
			continue
		}
		checked[key] = true
		differences, err := checkTOC(ctx, l, indexes[i], limits)
		if err != nil {
			return nil, nil, fmt.Errorf("layer %s: %w", l.Digest, err)
		}
		if len(differences) > 0 {
			problems = append(problems,
				fmt.Sprintf("layer %d, %s: by its annotation %q an engine may take other files than its archive's: %s",
					i+1, l.Digest, annotations[0], strings.Join(differences, "; ")))
		}
	}
	return diffIDs, problems, nil
}

// checkTOC reads a layer once more, into a file that has no name: its table of contents is at the end, and says in
// which order to read.
func checkTOC(ctx context.Context, l *image.Layer, index *rootfs.Index, limits rootfs.Limits) ([]string, error) {
	blob, err := l.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	f, err := os.CreateTemp("", "cconvert-")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	os.Remove(f.Name())
	sum := sha256.New()
	size, err := io.Copy(io.MultiWriter(f, sum), blob)
	if err != nil {
		return nil, err
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != l.Digest { // it is another one this time
		return nil, fmt.Errorf("%w: it is %s", rootfs.ErrDigest, got)
	}
	return rootfs.CheckTOC(ctx, f, size, l.Annotations, index, limits)
}
