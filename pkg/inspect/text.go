package inspect

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// DecodeExactly reads an object of JSON. Numbers stay as they are written: a float would not tell the times of a health
// check apart.
func DecodeExactly(text []byte) (m map[string]any, err error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	err = d.Decode(&m)
	return m, err
}

// maxText is how much of a value is shown.
const maxText = 500

// Text returns a value for people, shortened if it is long.
func Text(v any) string {
	b, err := json.Marshal(v)
	if err != nil || v == nil {
		return "absent"
	}
	if len(b) > maxText { // two that begin alike are told apart
		return fmt.Sprintf("%s… (%d bytes, %s)", b[:maxText], len(b), digestOf(b))
	}
	return string(b)
}
