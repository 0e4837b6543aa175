package quote

import (
	"encoding/hex"
	"time"

	"github.com/cconvert/cconvert/pkg/sgx"
)

// Description is what a quote says, for programs.
type Description struct {
	MREnclave  sgx.Measurement `json:"mr_enclave"`
	MRSigner   sgx.Measurement `json:"mr_signer"`
	ISVProdID  uint16          `json:"isv_prod_id"`
	ISVSVN     uint16          `json:"isv_svn"`
	ReportData string          `json:"report_data"`
	// Of an authentic quote.
	Status     Status   `json:"status,omitempty"`
	Advisories []string `json:"advisories,omitempty"`
	FMSPC      string   `json:"fmspc,omitempty"`
	TCBDate    string   `json:"tcb_date,omitempty"`
	Evaluation int      `json:"tcb_evaluation,omitempty"`
	Expires    string   `json:"collateral_expires,omitempty"`
}

// Describe describes a quote; the result is nil if it is not known to be authentic.
func (q *Quote) Describe(r *Result) Description {
	report := &q.Report
	d := Description{
		MREnclave: report.MREnclave, MRSigner: report.MRSigner, ISVProdID: report.ISVProdID, ISVSVN: report.ISVSVN,
		ReportData: hex.EncodeToString(report.Data[:]),
	}
	if r != nil {
		d.Status, d.Advisories, d.Evaluation = r.Status, r.Advisories, r.Evaluation
		d.FMSPC = hex.EncodeToString(r.Platform.FMSPC[:])
		d.TCBDate, d.Expires = r.TCBDate.Format(time.DateOnly), r.Expires.Format(time.RFC3339)
	}
	return d
}
