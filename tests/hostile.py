"Names as nobody hopes to find them in a corpus, and what a page must not hold whatever the names are."
from bs4 import BeautifulSoup

ODD = ('<img src=x onerror=alert(1)>&amp;<iframe srcdoc="<script>alert(2)</script>"></iframe> **b** '
       '[l](javascript:alert(3)) ![p](http://a.b/c.png) `q` $a$b$c{ |x')

def unsafe(html:str) -> list[str]:
    "Everything in a page that could run, load or frame something: each is one line."
    soup, bad = BeautifulSoup(html, 'html.parser'), []
    policy = soup.find('meta', attrs={'http-equiv': 'Content-Security-Policy'})
    rules = dict((r.split()[0], r.split()[1:]) for r in policy['content'].split(';')) if policy else {}
    if rules.get('default-src') != ["'none'"]: bad.append(f'no policy that starts from nothing: {rules}')
    if rules.keys() & {'script-src', 'script-src-elem', 'script-src-attr', 'frame-src', 'connect-src', 'object-src',
                       'child-src', 'worker-src'}:
        bad.append(f'the policy opens a door: {rules}')
    bad += [f'{k}: {v}' for k in ('img-src', 'media-src', 'font-src') for v in rules.get(k, []) if v != 'data:']
    if policy and policy.find_previous(['script', 'link', 'style', 'title', 'img']):
        bad.append('something stands before the policy')
    bad += [str(t)[:60] for t in soup(['script', 'iframe', 'object', 'embed', 'form', 'base', 'link'])]
    bad += [f'{t.name} {a}' for t in soup(True) for a in t.attrs if a.startswith('on') or a == 'srcdoc']
    bad += [f'{t.name} {a}={t[a][:60]}' for t in soup(True) for a in ('src', 'poster', 'data') if t.get(a)
            and not t[a].startswith('data:')]
    bad += [f'link to {t["href"][:60]}' for t in soup('a', href=True)
            if t['href'].lower().strip().startswith(('javascript', 'data'))]
    return bad
