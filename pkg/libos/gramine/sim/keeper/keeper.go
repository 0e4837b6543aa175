// Package keeper is how an agent without an enclave passes on keys: to a process that the simulation's loader has
// started before it gave up the right to mount, and that decrypts the image's files.
package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
)

// Variable has the number of the descriptor by which an agent reaches the process.
const Variable = "CCONVERT_SIM_KEEPER"

type message struct {
	Name string `json:"name"`
	Key  []byte `json:"key"`
}

type answer struct {
	Error string `json:"error,omitempty"`
}

// Keeper is the process as an agent sees it.
type Keeper struct{ conn *os.File }

// Inherited returns the process that was started before this one; nil: none was. The variable is taken away.
func Inherited() *Keeper {
	text, ok := os.LookupEnv(Variable)
	os.Unsetenv(Variable)
	fd, err := strconv.Atoi(text)
	if !ok || err != nil || fd < 3 {
		return nil
	}
	syscall.CloseOnExec(fd)
	return &Keeper{os.NewFile(uintptr(fd), "keeper")}
}

// SetKey passes on a key, and waits until the files are there that it is for.
func (k *Keeper) SetKey(name string, key []byte) error {
	if err := json.NewEncoder(k.conn).Encode(message{name, key}); err != nil {
		return fmt.Errorf("passing on a key: %w", err)
	}
	var a answer
	if err := json.NewDecoder(k.conn).Decode(&a); err != nil {
		return fmt.Errorf("passing on a key: %w", err)
	}
	if a.Error != "" {
		return errors.New(a.Error)
	}
	return nil
}

// Close lets the process end, and waits for that: the program has no child that it does not know of.
func (k *Keeper) Close() error {
	if err := k.conn.Close(); err != nil {
		return err
	}
	_, err := syscall.Wait4(-1, nil, 0, nil)
	return err
}

// Serve passes keys to a function until the agent has closed its side.
func Serve(conn io.ReadWriter, take func(name string, key []byte) error) error {
	in, out := json.NewDecoder(conn), json.NewEncoder(conn)
	for {
		var m message
		err := in.Decode(&m)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var a answer
		if err := take(m.Name, m.Key); err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}
