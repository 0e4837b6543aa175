//go:build e2e

package e2e

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

func dial(port string) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", "127.0.0.1:"+port, time.Second)
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	}
	return c, err
}

func get(port, want string) error { return getPath(port, "/", want) }

func getPath(port, path, want string) error {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://127.0.0.1:" + port + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || !strings.Contains(string(b), want)) {
		err = fmt.Errorf("%s: %.100q", resp.Status, b)
	}
	return err
}

func getPage(port string) error { return get(port, page) }

func askRedis(port string) error {
	c, err := dial(port)
	if err != nil {
		return err
	}
	defer c.Close()
	r := bufio.NewReader(c)
	for _, step := range [][2]string{{"SET key value", "+OK"}, {"GET key", "$5"}} {
		fmt.Fprintf(c, "%s\r\n", step[0])
		if err := expect(r, step[1]); err != nil {
			return err
		}
	}
	return expect(r, "value")
}

func askMemcached(port string) error {
	c, err := dial(port)
	if err != nil {
		return err
	}
	defer c.Close()
	r := bufio.NewReader(c)
	fmt.Fprint(c, "set key 0 0 5\r\nvalue\r\nget key\r\n")
	for _, line := range []string{"STORED", "VALUE key 0 5", "value", "END"} {
		if err := expect(r, line); err != nil {
			return err
		}
	}
	return nil
}

func expect(r *bufio.Reader, want string) error {
	line, err := r.ReadString('\n')
	if err == nil && strings.TrimSpace(line) != want {
		err = fmt.Errorf("the answer is %q, not %q", line, want)
	}
	return err
}

// askFastCGI sends one request of the FastCGI protocol (FastCGI specification, sections 3.3 and 5).
func askFastCGI(port string) error {
	c, err := dial(port)
	if err != nil {
		return err
	}
	defer c.Close()
	record := func(kind byte, content string) []byte {
		h := []byte{1, kind, 0, 1, 0, 0, 0, 0}
		binary.BigEndian.PutUint16(h[4:], uint16(len(content)))
		return append(h, content...)
	}
	params := ""
	for name, value := range map[string]string{
		"SCRIPT_FILENAME": "/app/index.php", "REQUEST_METHOD": "GET", "SCRIPT_NAME": "/index.php",
	} {
		params += string([]byte{byte(len(name)), byte(len(value))}) + name + value
	}
	const begin, parameters, input = 1, 4, 5
	request := record(begin, "\x00\x01\x00\x00\x00\x00\x00\x00")
	request = append(append(append(request, record(parameters, params)...), record(parameters, "")...),
		record(input, "")...)
	if _, err := c.Write(request); err != nil {
		return err
	}
	answer, err := io.ReadAll(c)
	if err == nil && !strings.Contains(string(answer), page) {
		err = fmt.Errorf("the answer is %.200q", answer)
	}
	return err
}
