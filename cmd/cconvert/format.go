package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"text/template"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// addJSON adds the flags by which a command prints for programs.
func addJSON(f *pflag.FlagSet, asJSON *bool, usage string) {
	f.BoolVar(asJSON, "json", false, usage)
	f.Var(&formatFlag{asJSON: asJSON}, "format",
		"print by a template of Go over the names of the JSON, such as '{{.digest}}'; json and join are functions")
}

// formatFlag is a template (Go package text/template) for what is otherwise JSON.
type formatFlag struct {
	text     string
	template *template.Template
	asJSON   *bool
}

func (f *formatFlag) Type() string   { return "template" }
func (f *formatFlag) String() string { return f.text }

func (f *formatFlag) Set(text string) (err error) {
	f.text = text
	*f.asJSON = true
	f.template, err = template.New("--format").Option("missingkey=error").Funcs(template.FuncMap{
		"json": func(v any) (string, error) {
			b, err := json.Marshal(v)
			return string(b), err
		},
		"join": func(list []any, between string) string {
			var words []string
			for _, v := range list {
				words = append(words, fmt.Sprint(v))
			}
			return strings.Join(words, between)
		},
	}).Parse(text)
	return err
}

// printJSON prints a value as JSON, or by the command's template.
func printJSON(cmd *cobra.Command, v any) error { return printAs(cmd, v, "  ") }

// printJSONLine prints a value as JSON in one line, or by the command's template.
func printJSONLine(cmd *cobra.Command, v any) error { return printAs(cmd, v, "") }

func printAs(cmd *cobra.Command, v any, indent string) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", indent)
	e.SetEscapeHTML(indent == "")
	if err := e.Encode(v); err != nil {
		return err
	}
	if flag := cmd.Flags().Lookup("format"); flag != nil && flag.Changed {
		if f, ok := flag.Value.(*formatFlag); ok {
			return f.print(cmd, &b)
		}
	}
	_, err := cmd.OutOrStdout().Write(b.Bytes())
	return err
}

// print executes the template over decoded JSON, so that the names are those that are documented.
func (f *formatFlag) print(cmd *cobra.Command, text *bytes.Buffer) error {
	var v any
	d := json.NewDecoder(text)
	d.UseNumber() // as they are written
	if err := d.Decode(&v); err != nil {
		return err
	}
	var out bytes.Buffer
	if err := f.template.Execute(&out, v); err != nil {
		return &usageError{err}
	}
	out.WriteByte('\n')
	_, err := cmd.OutOrStdout().Write(out.Bytes())
	return err
}
