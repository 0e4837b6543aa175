package sbom

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spdx/tools-golang/spdx/v2/common"
	"github.com/spdx/tools-golang/spdx/v2/v2_3"
)

const (
	noAssertion  = "NOASSERTION"
	purposeFile  = "FILE"
	purposeImage = "CONTAINER"
)

// SPDX returns the bill as an SPDX document, version 2.3, in JSON. Files are packages in it: SPDX's own files must have
// a SHA-1.
func (b Bill) SPDX() ([]byte, error) {
	d := &v2_3.Document{
		SPDXVersion: v2_3.Version, DataLicense: v2_3.DataLicense, SPDXIdentifier: "DOCUMENT",
		DocumentName:      "added to " + b.Name,
		DocumentNamespace: "https://github.com/cconvert/cconvert/spdx/" + strings.ReplaceAll(b.Digest, ":", "-"),
		DocumentComment:   incomplete,
		CreationInfo: &v2_3.CreationInfo{
			Created: b.created(), Creators: []common.Creator{{CreatorType: "Tool", Creator: tool}},
		},
	}
	add := func(p *v2_3.Package, relation string, to common.ElementID) common.ElementID {
		p.PackageSPDXIdentifier = common.ElementID(fmt.Sprintf("Package-%d", len(d.Packages)))
		p.PackageDownloadLocation, p.PackageCopyrightText = noAssertion, noAssertion
		p.PackageLicenseConcluded, p.PackageLicenseDeclared = noAssertion, noAssertion
		d.Packages = append(d.Packages, p)
		d.Relationships = append(d.Relationships, &v2_3.Relationship{
			RefA:         common.DocElementID{ElementRefID: to},
			RefB:         common.DocElementID{ElementRefID: p.PackageSPDXIdentifier},
			Relationship: relation,
		})
		return p.PackageSPDXIdentifier
	}
	image := add(spdxImage(b.Name, b.Digest), common.TypeRelationshipDescribe, d.SPDXIdentifier)
	if b.Source != "" {
		add(spdxImage("source", b.Source), common.TypeRelationshipDescendantOf, image)
	}
	for _, l := range b.Layers {
		layer := add(&v2_3.Package{
			PackageName: l.Name, PackageVersion: l.Version, PackageChecksums: spdxSum(l.Digest),
			PrimaryPackagePurpose: "ARCHIVE", PackageComment: "a layer of the image",
		}, common.TypeRelationshipContains, image)
		for _, f := range l.Files {
			add(&v2_3.Package{
				PackageName: f.Path, PackageFileName: f.Path, PrimaryPackagePurpose: purposeFile,
				PackageChecksums: spdxSum("sha256:" + hex.EncodeToString(f.SHA256[:])),
			}, common.TypeRelationshipContains, layer)
		}
		for _, lib := range l.Libraries {
			refs := []*v2_3.PackageExternalReference{{
				Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: lib.PURL,
			}}
			if lib.CPE != "" {
				refs = append(refs, &v2_3.PackageExternalReference{
					Category: common.CategorySecurity, RefType: common.TypeSecurityCPE23Type, Locator: lib.CPE,
				})
			}
			add(&v2_3.Package{
				PackageName: lib.Name, PackageVersion: lib.Version, PrimaryPackagePurpose: "LIBRARY",
				PackageExternalReferences: refs,
			}, common.TypeRelationshipContains, layer)
		}
	}
	return json.Marshal(d)
}

// incomplete says what a bill is not.
const incomplete = "What the conversion has put on the source image. What the source consists of is not listed."

func spdxImage(name, digest string) *v2_3.Package {
	return &v2_3.Package{
		PackageName: name, PackageVersion: digest, PackageChecksums: spdxSum(digest),
		PrimaryPackagePurpose: purposeImage,
		PackageExternalReferences: []*v2_3.PackageExternalReference{{
			Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL,
			Locator: purl(name, digest),
		}},
	}
}

func spdxSum(digest string) []common.Checksum {
	_, sum, _ := strings.Cut(digest, ":")
	return []common.Checksum{{Algorithm: common.SHA256, Value: sum}}
}

// oursInSPDX reports by ErrNotOurs that a document does not say that this program has made it. The library's own type
// does not bear every document.
func oursInSPDX(document []byte) error {
	var d struct {
		CreationInfo struct{ Creators []string } `json:"creationInfo"`
	}
	if err := json.Unmarshal(document, &d); err != nil {
		return fmt.Errorf("reading the SPDX document: %w", err)
	}
	if !slices.Contains(d.CreationInfo.Creators, "Tool: "+tool) {
		return ErrNotOurs
	}
	return nil
}
