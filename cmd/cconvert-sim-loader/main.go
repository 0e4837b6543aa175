// Command cconvert-sim-loader starts the program of an image that was converted with --runtime sim. It is put into
// these images, and nobody else calls it.
package main

import (
	"os"

	"github.com/cconvert/cconvert/pkg/libos/gramine/sim/loader"
)

func main() { os.Exit(loader.Main(os.Args)) }
